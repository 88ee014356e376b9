"""The studies behind the paper's figures: eval_study study=guide_rates|decode_sweep|correction|figures output_dir=DIR."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hybrid_tokenizer.baselines.loading import load_baseline
from hybrid_tokenizer.checkpoints.files import state_hash
from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.loading import load_tokenizer
from hybrid_tokenizer.devices import choose_device, rank_and_world_size
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import (
    CorrectionConfig,
    DecodeSweepConfig,
    EvalData,
    FiguresConfig,
    GuideRatesConfig,
)
from hybrid_tokenizer.evaluation.images import open_images
from hybrid_tokenizer.evaluation.store import open_store, run_facts
from hybrid_tokenizer.evaluation.studies import correction, decode_sweep, figures, guide_rates
from hybrid_tokenizer.evaluation.super_resolution import LEFT_OUT, NAME, load_upscaler
from hybrid_tokenizer.hybrid import HybridTokenizer


def run_guide_rates(config: GuideRatesConfig) -> None:
    """guide.json, guide.md, guide.png and guide_pictures.png."""
    started, device, folder = time.perf_counter(), choose_device(config.device), Path(config.output_dir)
    guides = guide_rates.load_guides(config.guides, device)
    if not guides:
        tokenizer = load_tokenizer(config, device)
        guides = {tokenizer.name: tokenizer.guide}
    movq = None if config.movq is None else guide_rates.load_movq(config.movq, device)
    lines = guide_rates.lines_of(guides, movq, config.data.image_size, config.codec)
    images = open_images(config.data)
    sets = [open_images(EvalData(root, config.data.image_size, config.max_train_images)) for root in config.train_root]
    models = guides | ({} if movq is None else {"movq": movq})
    facts = {"config": asdict(config), "train_images": [len(one) for one in sets]}
    facts |= {"weights_sha256": {name: state_hash(model, torch.float16) for name, model in models.items()}}
    store = open_store(folder, facts, images, device)
    rates = guide_rates.measure_guides(
        lines, images, device=device, pictures=config.pictures, batch_size=config.batch_size, store=store
    )
    uses = guide_rates.count_codes(guides, sets, device, config.batch_size) if sets else {}
    if not leads():
        return
    for row in rates.rows:
        row |= uses.get(row["model"], {})
    unavailable = {} if movq else {"MoVQ at the same sizes": "no checkpoint was given (movq=FILE)"}
    facts |= run_facts(images, device, started)
    print(guide_rates.write_guide_rates(folder, rates, unavailable, facts, images.names))
    store.clear()
    print(f"written to {config.output_dir}")


def run_decode_sweep(config: DecodeSweepConfig) -> None:
    """eval_decode.json, eval_decode.md and eval_decode.png."""
    started, device, folder = time.perf_counter(), choose_device(config.device), Path(config.output_dir)
    tokenizer = load_tokenizer(config, device)
    images = open_images(config.data)
    facts = {"config": asdict(config), "weights_sha256": {tokenizer.name: tokenizer.hash}}
    store = open_store(folder, facts, images, device)
    rows = decode_sweep.sweep(
        tokenizer, images, config.settings(), store=store, seeds=[config.seed], batch_size=config.batch_size
    )
    if not leads():
        return
    facts |= run_facts(images, device, started)
    table, recommended = decode_sweep.write_sweep(folder, rows, config.psnr_margin, facts)
    store.clear()
    print(f"{table}\nrecommended: {recommended}; written to {config.output_dir}")


def run_correction(config: CorrectionConfig) -> None:
    """correction.json, correction.md, correction.png and correction.pdf."""
    started, device, folder = time.perf_counter(), choose_device(config.device), Path(config.output_dir)
    tokenizer = load_tokenizer(config, device)
    methods = correction.renderers(tokenizer, config.methods, config.baselines)
    images = open_images(config.data)
    facts = {"config": asdict(config), "search_steps": tokenizer.search_steps}
    facts |= {"weights_sha256": {tokenizer.name: tokenizer.hash}}
    store = open_store(folder, facts, images, device)
    done = correction.measure_correction(
        tokenizer, images, config.damages(), methods, seed=config.seed, store=store, batch_size=config.batch_size,
        pictures=config.pictures,
    )  # fmt: skip
    if not leads():
        return
    table = correction.write_correction(folder, done, images, facts | run_facts(images, device, started))
    store.clear()
    print(f"{table}\nwritten to {config.output_dir}")


def run_figures(config: FiguresConfig) -> None:
    """figureN.png, figureN.pdf and figureN.json of the chosen figures."""
    started, device = time.perf_counter(), choose_device(config.device)
    tokenizer = load_tokenizer(config, device)
    others = [load_tokenizer(config, device, guide=guide) for guide in config.guides]
    images = open_images(config.data)
    painter = figures.Painter(images, seed=config.seed, batch_size=config.batch_size, device=device)
    facts = {"config": asdict(config), "search_steps": tokenizer.search_steps}
    facts |= {"weights_sha256": {one.name: one.hash for one in (tokenizer, *others)}}
    for number in config.chosen():
        drawn = draw_figure(number, painter, tokenizer, figures.guide_variants(tokenizer, others), config)
        if leads():
            for path in figures.write_drawn(
                Path(config.output_dir), number, drawn, facts | run_facts(images, device, started)
            ):
                print(path)


def draw_figure(
    number: str,
    painter: figures.Painter,
    tokenizer: HybridTokenizer,
    variants: Sequence[figures.GuideVariant],
    config: FiguresConfig,
) -> figures.DrawnFigure:
    """One figure from its number."""
    baselines = config.baselines
    if number == "2":
        return figures.figure_2(painter, figures.rows_of_figure_2(tokenizer, config.rows, baselines))
    if number == "3":
        return figures.figure_3(painter, variants)
    if number == "4":
        movq = [load_baseline(name, path) for name, path in baselines.items() if name.startswith(figures.MOVQ)]
        return figures.figure_4(painter, variants, [row.to(tokenizer.device) for row in movq])
    if NAME not in baselines and leads():
        tqdm.write(LEFT_OUT)
    return figures.figure_5(painter, variants, load_upscaler(baselines[NAME]) if NAME in baselines else None)


def leads() -> bool:
    """Whether this is the first process of a run, the one that writes and prints."""
    return rank_and_world_size()[0] == 0


STUDIES: dict[type, Callable[[Any], None]] = {
    GuideRatesConfig: run_guide_rates,
    DecodeSweepConfig: run_decode_sweep,
    CorrectionConfig: run_correction,
    FiguresConfig: run_figures,
}


@command("eval_study")
def main(config: Any) -> None:
    if type(config) not in STUDIES:
        raise HybridTokenizerError("study has no value; give study=guide_rates, decode_sweep, correction or figures")
    STUDIES[type(config)](config)
