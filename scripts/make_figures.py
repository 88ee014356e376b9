"""Draw the paper's Figures 2 to 5, each as PNG and PDF with its numbers as JSON. See --help for the options."""

import time
from dataclasses import asdict
from pathlib import Path

from torch import nn
from tqdm import tqdm

from hybrid_tokenizer.baselines.registry import load_baseline
from hybrid_tokenizer.config import command
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.evaluation.config import FiguresConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import provenance
from hybrid_tokenizer.evaluation.studies import figures as paper
from hybrid_tokenizer.evaluation.super_resolution import LEFT_OUT, NAME, load_upscaler
from hybrid_tokenizer.hybrid import HybridTokenizer


@command("make_figures")
def run(config: FiguresConfig) -> None:
    started = time.perf_counter()
    device = choose_device(config.device)
    components, baselines = asdict(config.components), config.baselines
    tokenizer, *others = (
        HybridTokenizer.from_pretrained(config.model_name, **(components | guide)).to(device)
        for guide in ({}, *({"guide": folder} for folder in config.guides))
    )
    images = EvalImages.open(config.data.root, config.data.image_size, max_images=config.data.max_images)
    painter = paper.Painter(images, seed=config.seed, batch_size=config.batch_size, device=device)
    variants = paper.guide_variants(tokenizer, others)
    for number in config.chosen():
        if number == "2":
            rows = paper.rows_of_figure_2(tokenizer, config.rows, baselines)
            drawn = paper.figure_2(painter, [row.to(device) if isinstance(row, nn.Module) else row for row in rows])
        elif number == "3":
            drawn = paper.figure_3(painter, variants)
        elif number == "4":
            movq = [load_baseline(name, path) for name, path in baselines.items() if name.startswith(paper.MOVQ)]
            drawn = paper.figure_4(painter, variants, [row.to(device) for row in movq])
        else:
            if NAME not in baselines:
                tqdm.write(LEFT_OUT)
            drawn = paper.figure_5(painter, variants, load_upscaler(baselines[NAME]) if NAME in baselines else None)
        facts = {"config": asdict(config), "search_steps": tokenizer.search_steps}
        facts |= {"weights_sha256": {one.name: one.hash for one in (tokenizer, *others)}}
        for path in paper.write_drawn(
            Path(config.output_dir), number, drawn, facts | provenance(images, device, started)
        ):
            print(path)


if __name__ == "__main__":
    run()
