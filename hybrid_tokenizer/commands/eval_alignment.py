"""Score decoded images against their captions, and write the table: eval_alignment data.root=FOLDER output_dir=DIR."""

import time
from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.commands.loading import load_tokenizer
from hybrid_tokenizer.devices import choose_device, rank_and_world_size
from hybrid_tokenizer.evaluation.config import EvalAlignmentConfig
from hybrid_tokenizer.evaluation.pairs import open_pairs
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.scores import build_scores
from hybrid_tokenizer.evaluation.store import open_store, run_facts
from hybrid_tokenizer.evaluation.studies.alignment import (
    finish_rows,
    ranked_by,
    score_rows,
    shared_by,
    write_alignment,
)


@command("eval_alignment")
def main(config: EvalAlignmentConfig) -> None:
    started = time.perf_counter()
    device, folder = choose_device(config.device), Path(config.output_dir)
    names = config.row_names()
    shared_by(names, config.share_among)
    built = build_scores(config.score_weights, config.clip_tokenizer, device, getattr(torch, config.dtype))
    rank_by = ranked_by([score.name for score in built.scores], config.rank_by)
    tokenizer = load_tokenizer(config, device)
    rows = rows_by_name(tokenizer, names, config.baselines)
    pairs = open_pairs(config.data)
    facts = {"config": asdict(config), "seeds": config.seeds, "captions_sha256": pairs.captions_hash}
    facts |= {"weights_sha256": {tokenizer.name: tokenizer.hash} | built.hashes, "search_steps": tokenizer.search_steps}
    store = open_store(folder, facts, pairs.images, device)
    done = score_rows(
        rows, pairs, built.scores, store=store, seeds=config.seeds, batch_size=config.batch_size, device=device,
        pictures=config.pictures,
    )  # fmt: skip
    if rank_and_world_size()[0] > 0:
        return
    facts |= {"unavailable_scores": built.unavailable} | run_facts(pairs.images, device, started)
    finished = finish_rows(done, rank_by, config.share_among, config.compare_to)
    table = write_alignment(folder, finished, done, pairs.captions, facts)
    store.clear()
    print(f"{table}\n{len(pairs.images)} pairs, {len(pairs.images.skipped)} skipped; written to {config.output_dir}")
