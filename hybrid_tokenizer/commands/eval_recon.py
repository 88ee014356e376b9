"""Reconstruct images with the hybrid and its controls, and write the table: eval_recon data.root=FOLDER output_dir=DIR."""

import time
from dataclasses import asdict
from pathlib import Path

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.loading import load_tokenizer
from hybrid_tokenizer.devices import choose_device, rank_and_world_size
from hybrid_tokenizer.evaluation.config import EvalReconConfig
from hybrid_tokenizer.evaluation.images import open_images
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.measures import default_metrics, unavailable_metrics
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.store import open_store, run_facts
from hybrid_tokenizer.evaluation.studies.recon import write_recon
from hybrid_tokenizer.metrics.weighted import of_a_set


@command("eval_recon")
def main(config: EvalReconConfig) -> None:
    started = time.perf_counter()
    device, folder = choose_device(config.device), Path(config.output_dir)
    measures = default_metrics(device, config.metric_weights)
    tokenizer = load_tokenizer(config, device)
    rows = rows_by_name(tokenizer, config.tokenizers, config.baselines, extra=config.extra_rows)
    images = open_images(config.data)
    facts = {"config": asdict(config), "seeds": config.seeds, "search_steps": tokenizer.search_steps}
    facts |= {"weights_sha256": {tokenizer.name: tokenizer.hash}}
    store = open_store(folder, facts, images, device)
    evaluations = evaluate_rows(
        rows, images, measures, config.compare_to, store=store, seeds=config.seeds,
        batch_size=config.batch_size, device=device, pictures=config.pictures,
        of_a_set=of_a_set(config.metric_weights, device),
    )  # fmt: skip
    if rank_and_world_size()[0] > 0:
        return
    facts |= {"unavailable_metrics": unavailable_metrics(config.metric_weights)} | run_facts(images, device, started)
    table = write_recon(folder, evaluations, images, facts, config.pictures)
    store.clear()
    print(f"{table}\n{len(images)} images, {len(images.skipped)} skipped; written to {config.output_dir}")
