"""Score restored images against their captions, and write the table of who says more of the text. See --help for the options."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from hybrid_tokenizer.config import command
from hybrid_tokenizer.devices import choose_device, rank_and_world_size
from hybrid_tokenizer.evaluation.config import EvalAlignmentConfig
from hybrid_tokenizer.evaluation.loop import provenance
from hybrid_tokenizer.evaluation.pairs import open_pairs
from hybrid_tokenizer.evaluation.pictures import picture_grid
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.scores import build_scores
from hybrid_tokenizer.evaluation.store import FinishedRows
from hybrid_tokenizer.evaluation.studies.alignment import finish_rows, ranked_by, score_rows, shared_by
from hybrid_tokenizer.evaluation.studies.alignment_report import write_alignment
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.provenance import git_revision


@command("eval_alignment")
def run(config: EvalAlignmentConfig) -> None:
    started = time.perf_counter()
    device, names = choose_device(config.device), config.row_names()
    shared_by(names, config.share_among)
    built = build_scores(config.score_weights, config.clip_tokenizer, device, getattr(torch, config.dtype))
    rank_by = ranked_by([score.name for score in built.scores], config.rank_by)
    tokenizer = HybridTokenizer.from_pretrained(config.model_name, **asdict(config.components)).to(device)
    rows = [
        row.to(device) if isinstance(row, torch.nn.Module) else row
        for row in rows_by_name(tokenizer, names, config.baselines)
    ]
    leads = rank_and_world_size()[0] == 0
    pairs = open_pairs(config.data, say=tqdm.write if leads else lambda line: None, progress=leads)
    facts = {"config": asdict(config), "seeds": config.seeds, "captions_sha256": pairs.captions_hash}
    facts |= {"weights_sha256": {tokenizer.name: tokenizer.hash} | built.hashes, "search_steps": tokenizer.search_steps}
    images, folder = pairs.images, Path(config.output_dir)
    store = FinishedRows(folder, [facts, images.pixels_hash, images.names, git_revision(), str(device)])
    done = score_rows(
        rows, pairs, built.scores, store=store, seeds=config.seeds, batch_size=config.batch_size, device=device,
        pictures=config.pictures, progress=leads,
    )  # fmt: skip
    if not leads:
        return
    shown = min(config.pictures, len(images))
    grid = picture_grid([(row.row["method"], row.pictures) for row in done], pairs.captions[:shown]) if shown else None
    facts |= {key: value for key, value in provenance(images, device, started).items() if key != "unavailable_metrics"}
    table = write_alignment(
        folder,
        finish_rows(done, rank_by, config.share_among, config.compare_to),
        facts | {"unavailable_scores": built.unavailable},
        [entry for row in done for entry in row.per_image],
        grid,
    )
    store.clear()
    print(f"{table}\n{len(images)} pairs, {len(images.skipped)} skipped; written to {config.output_dir}")


if __name__ == "__main__":
    run()
