"""Reconstruct a folder of images with the hybrid and its controls, and write the table. See --help for the options."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.config import command
from hybrid_tokenizer.devices import choose_device, rank_and_world_size
from hybrid_tokenizer.evaluation.config import EvalReconConfig
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate_rows, provenance
from hybrid_tokenizer.evaluation.pictures import picture_grid
from hybrid_tokenizer.evaluation.plots import draw_rates
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.store import FinishedRows
from hybrid_tokenizer.evaluation.summary import default_metrics
from hybrid_tokenizer.evaluation.tables import cell, write_report
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import to_uint8
from hybrid_tokenizer.metrics.weighted import of_a_set
from hybrid_tokenizer.provenance import git_revision


@command("eval_recon")
def run(config: EvalReconConfig) -> None:
    started = time.perf_counter()
    device = choose_device(config.device)
    tokenizer = HybridTokenizer.from_pretrained(config.model_name, **asdict(config.components)).to(device)
    rows = [
        row.to(device) if isinstance(row, torch.nn.Module) else row
        for row in rows_by_name(tokenizer, config.tokenizers, config.baselines)
    ]
    leads = rank_and_world_size()[0] == 0
    say = tqdm.write if leads else lambda line: None
    images = EvalImages.open(
        config.data.root, config.data.image_size, max_images=config.data.max_images, say=say, progress=leads
    )
    facts = {"config": asdict(config), "seeds": config.seeds, "search_steps": tokenizer.search_steps}
    facts |= {"weights_sha256": {tokenizer.name: tokenizer.hash}}
    store = FinishedRows(
        Path(config.output_dir), [facts, images.pixels_hash, images.names, git_revision(), str(device)]
    )
    evaluations = evaluate_rows(
        rows, images, default_metrics(device, config.metric_weights), config.compare_to, store=store,
        seeds=config.seeds, batch_size=config.batch_size, device=device, pictures=config.pictures,
        of_a_set=of_a_set(config.metric_weights, device), progress=leads,
    )  # fmt: skip
    if not leads:
        return

    shown = range(min(config.pictures, len(images)))
    columns = [("original", torch.stack([to_uint8(images[i]) for i in shown]))]
    columns += [(done.row["method"], done.pictures) for done in evaluations]
    captions = [
        "",
        *(f"{cell(done.row, 'psnr').replace('∞', 'inf')} dB, {cell(done.row, 'bits')} bits" for done in evaluations),
    ]
    grid = picture_grid(columns, [images.names[i] for i in shown], captions)
    table = write_report(
        Path(config.output_dir),
        [done.row for done in evaluations],
        facts | provenance(images, device, started, config.metric_weights),
        [entry for done in evaluations for entry in done.per_image],
        grid,
    )
    write_atomic(Path(config.output_dir) / "recon_rd.png", draw_rates([done.row for done in evaluations]))
    store.clear()
    print(f"{table}\n{len(images)} images, {len(images.skipped)} skipped; written to {config.output_dir}")


if __name__ == "__main__":
    run()
