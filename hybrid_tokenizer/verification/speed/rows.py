"""Run the benchmark's rows by name, and tabulate their results."""

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from hybrid_tokenizer.evaluation.tables import MISSING, Column, to_markdown
from hybrid_tokenizer.verification.speed import coding, feeding, running
from hybrid_tokenizer.verification.speed.bench import Bench
from hybrid_tokenizer.verification.speed.config import GPU_ROWS, ROWS, BenchmarkConfig
from hybrid_tokenizer.verification.speed.sd15 import sd15_row

BUILDERS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "encode": coding.encode,
    "encode_search": coding.encode_search,
    "decode": coding.decode,
    "decode_latency": coding.decode_latency,
    "decode_batch8_vs_1": coding.decode_batch8_vs_1,
    "decode_bf16": coding.decode_bf16,
    "train_guide": running.train_guide,
    "loader": feeding.loader,
    "loader_resident": feeding.loader_resident,
    "cache": feeding.cache,
    "latent_draw": feeding.latent_draw,
    "harness": running.harness,
    "harness_references": running.harness_references,
    "harness_ssim_psnr": running.harness_ssim_psnr,
    "harness_memory": running.harness_memory,
    "import": running.import_time,
    "startup": running.startup,
    **{name: partial(sd15_row, name=name) for name in GPU_ROWS},
}
COLUMNS = [
    Column("name", "row"),
    Column("ours", "ours", ".4g"),
    Column("alternative", "alternative", ".4g"),
    Column("unit", "unit"),
    Column("ratio", "ratio", ".2f"),
    Column("difference", "largest difference"),
]


def run_rows(config: BenchmarkConfig, device: torch.device, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows of `config`, by default all that the device can run."""
    bench = Bench(config, device)
    names = config.rows or [*ROWS, *(GPU_ROWS if device.type == "cuda" else ())]
    rows = []
    for name in names:
        start = time.perf_counter()
        rows.append(BUILDERS[name](bench))
        say(f"{summary(rows[-1])}  [{time.perf_counter() - start:.0f} s]")
        gc.collect()
    return rows


def summary(row: dict[str, Any]) -> str:
    """A row in one line."""
    return f"{row['name']}: {row['ours']:.4g} against {row['alternative']:.4g} {row['unit']}, ratio {row['ratio']:.2f}"


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the rows in Markdown, and what each side is."""
    lines = [f"- {row['name']}: {row['ours_is']}; against {row['alternative_is']}." for row in rows]
    table = to_markdown([{**row, "difference": difference(row)} for row in rows], COLUMNS)
    return "\n".join([table.rstrip(), "", *lines]) + "\n"


def difference(row: dict[str, Any]) -> str:
    """The largest difference of the outputs and its unit."""
    value = row["max_output_difference"]
    return MISSING if value is None else f"{value:.2g} ({row['difference_is']})"
