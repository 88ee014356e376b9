"""Damage the guide and see which way of decoding it corrects the damage. See --help for the options."""

import time
from dataclasses import asdict
from pathlib import Path

from hybrid_tokenizer.config import command
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.config import EvalCorrectionConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import provenance
from hybrid_tokenizer.evaluation.studies.correction import (
    correction_metrics,
    evaluate_correction,
    renderers,
    write_correction,
)
from hybrid_tokenizer.hybrid import HybridTokenizer


@command("eval_correction")
def run(config: EvalCorrectionConfig) -> None:
    started = time.perf_counter()
    device = choose_device(config.device)
    tokenizer = HybridTokenizer.from_pretrained(config.model_name, **asdict(config.components)).to(device)
    methods = renderers(tokenizer, config.methods, config.baselines, config.seed)
    images = EvalImages.open(config.data.root, config.data.image_size, max_images=config.data.max_images)
    correction = evaluate_correction(
        tokenizer, images, config.damages(), methods, correction_metrics(device),
        seed=config.seed, batch_size=config.batch_size, pictures=config.pictures,
    )  # fmt: skip
    facts = {"config": asdict(config), "search_steps": tokenizer.search_steps}
    facts |= {"weights_sha256": {tokenizer.name: tokenizer.hash}}
    table = write_correction(Path(config.output_dir), correction, images, facts | provenance(images, device, started))
    print(f"{table}\nwritten to {config.output_dir}")


if __name__ == "__main__":
    run()
