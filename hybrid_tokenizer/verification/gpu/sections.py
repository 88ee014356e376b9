"""The sections of the GPU check, and the process that runs one of them: sections.py NAME OPTIONS OUTPUT."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.gpu import coding, training
from hybrid_tokenizer.verification.gpu.config import GpuCheckConfig
from hybrid_tokenizer.verification.gpu.rows import Row
from hybrid_tokenizer.verification.speed.config import GPU_ROWS, ROWS, BenchmarkConfig
from hybrid_tokenizer.verification.speed.rows import run_rows

GRAPHS = ("sd15_decode_latency",)
"""Rows that are measured again with the U-Net's kernels replayed as CUDA graphs."""


class Section(NamedTuple):
    """A part of the check that runs in a process of its own."""

    run: Callable[[GpuCheckConfig], Iterator[Row]]
    limit: int
    """Seconds after which it is ended. What it had measured by then is kept."""


def in_scratch(section: Callable[[GpuCheckConfig, Path], Iterator[Row]]) -> Callable[[GpuCheckConfig], Iterator[Row]]:
    """A section that gets a temporary folder."""

    def run(config: GpuCheckConfig) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as folder:
            yield from section(config, Path(folder))

    return run


def benchmark(names: tuple[str, ...], **options: Any) -> Callable[[GpuCheckConfig], Iterator[Row]]:
    """Rows of the benchmark, as ratios. `options` are those of the benchmark."""

    def run(config: GpuCheckConfig) -> Iterator[Row]:
        for name in names:
            few = {"image_size": 128, "batch_size": 2, "repeats": 1, "train_steps": 2, "num_inference_steps": 5}
            sizes = few if config.reduced else {}
            benchmark = BenchmarkConfig(rows=[name], reduced=config.reduced, **sizes, **options)
            (row,) = run_rows(benchmark, torch.device(config.device), lambda line: print(line, flush=True))
            yield Row(name, row["ours"], row["unit"])
            yield Row(f"{name}: ratio to the plain code", row["ratio"])
            for key in ("share_of_limit", "tflop_per_image", "peak_memory_bytes"):
                if key in row:
                    yield Row(f"{name}: {key}", row[key])

    return run


SECTIONS = {
    "versions": Section(coding.versions, 60),
    "devices": Section(coding.devices, 60),
    "batches": Section(coding.batches, 60),
    "precisions": Section(coding.precisions, 60),
    "compiled": Section(coding.compiled, 120),
    "resume": Section(in_scratch(training.resume), 120),
    "stages": Section(in_scratch(training.stages), 120),
    "two_processes": Section(in_scratch(training.two_processes), 90),
    "benchmark": Section(benchmark(ROWS), 180),
    "benchmark_sd15": Section(benchmark(GPU_ROWS), 150),
    "benchmark_sd15_graphs": Section(benchmark(GRAPHS, compile=True, compile_mode="reduce-overhead"), 150),
}


def main() -> None:
    """Run one section and append its rows to a JSON Lines file as they come."""
    name, options, output = sys.argv[1:]
    config = GpuCheckConfig(**json.loads(options))
    if config.reduced:
        torch.set_num_threads(1)
    with open(output, "a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps({"section": name, **row._asdict()}) + "\n")
            file.flush()

        for row in SECTIONS[name].run(config):
            write(row)
        if config.device == "cuda":
            write(Row("peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB"))


if __name__ == "__main__":
    try:
        main()
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
