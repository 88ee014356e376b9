"""Sweep start x strength x steps x guidance and recommend a default for decoding. See --help for the options."""

import time
from dataclasses import asdict
from pathlib import Path

from hybrid_tokenizer.config import command
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.config import EvalDecodeConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import provenance
from hybrid_tokenizer.evaluation.studies.decode_sweep import sweep, sweep_metrics, write_sweep
from hybrid_tokenizer.hybrid import HybridTokenizer


@command("eval_decode")
def run(config: EvalDecodeConfig) -> None:
    started = time.perf_counter()
    device = choose_device(config.device)
    tokenizer = HybridTokenizer.from_pretrained(config.model_name, **asdict(config.components)).to(device)
    images = EvalImages.open(config.data.root, config.data.image_size, max_images=config.data.max_images)
    rows = sweep(
        tokenizer, images, config.settings(), sweep_metrics(device), seed=config.seed, batch_size=config.batch_size
    )
    facts = {"config": asdict(config), "weights_sha256": {tokenizer.name: tokenizer.hash}}
    folder = Path(config.output_dir)
    recommended = write_sweep(folder, rows, config.psnr_margin, facts | provenance(images, device, started))
    print((folder / "eval_decode.md").read_text())
    print(f"recommended: {recommended}; written to {config.output_dir}")


if __name__ == "__main__":
    run()
