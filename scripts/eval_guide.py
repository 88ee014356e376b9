"""Rate and distortion of guide tokenizers against MoVQ and the codecs (the paper's Fig. 4). See --help for the options."""

import time
from dataclasses import asdict
from pathlib import Path

from hybrid_tokenizer.config import command
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.config import EvalGuideConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import provenance
from hybrid_tokenizer.evaluation.studies.guide_rates import (
    count_codes,
    load_guides,
    load_movq,
    readings,
    study,
    write_study,
)


@command("eval_guide")
def run(config: EvalGuideConfig) -> None:
    started = time.perf_counter()
    device = choose_device(config.device)
    guides = load_guides(config.guides, device)
    movq = None if config.movq is None else load_movq(config.movq, device)
    images = EvalImages.open(config.data.root, config.data.image_size, max_images=config.data.max_images)
    rows = readings(guides, movq, config.data.image_size, config.codec)
    result = study(rows, guides, movq, images, device=device, batch_size=config.batch_size, pictures=config.pictures)
    sets = [
        EvalImages.open(root, config.data.image_size, max_images=config.max_train_images) for root in config.train_root
    ]
    uses = count_codes(guides, sets, device, config.batch_size) if sets else {}
    models = {reading.name: reading.model for reading in rows}
    for row in result.rows:
        row |= uses.get(models[row["method"]], {})
    unavailable = {} if movq else {"MoVQ at the same sizes": "no checkpoint was given (movq=FILE)"}
    facts = {"config": asdict(config), "train_images": [len(images) for images in sets]}
    table = write_study(
        Path(config.output_dir), result, unavailable, facts | provenance(images, device, started), images.names
    )
    print(table)
    print(f"written to {config.output_dir}")


if __name__ == "__main__":
    run()
