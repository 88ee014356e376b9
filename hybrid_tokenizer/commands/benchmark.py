"""Time the system against the code that a user would write without it. benchmarks/README.md explains the rows."""

import time
from dataclasses import asdict
from pathlib import Path

import torch

from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.devices import choose_device
from hybrid_tokenizer.provenance import git_revision, machine, peak_memory_bytes, versions
from hybrid_tokenizer.verification.speed.config import BenchmarkConfig
from hybrid_tokenizer.verification.speed.rows import report, run_rows


@command("benchmark")
def main(config: BenchmarkConfig) -> None:
    started = time.perf_counter()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    rows = run_rows(config, choose_device(config.device), lambda line: print(line, flush=True))
    results = {
        "machine": machine(),
        "rows": rows,
        "config": asdict(config),
        "revision": git_revision(),
        "versions": versions(),
        "wall_seconds": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    output = Path(config.output)
    write_json(output, results)
    write_atomic(output.with_suffix(".md"), report(rows).encode())
    print(f"written to {output}")
