"""Runs the sections of the GPU check, each in its own process with a time limit, and writes what they measured."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.provenance import provenance
from hybrid_tokenizer.verification.gpu.config import GpuCheckConfig
from hybrid_tokenizer.verification.gpu.sections import SECTIONS

JOBS_ON_A_CPU = 2
REDUCED_LIMIT = 4
"""A CPU may take this many times a section's limit."""
COLUMNS = [Column("section", "section"), Column("check", "check"), Column("value", "value", ".4g"), Column("unit", "unit"), Column("expected", "expected"), Column("verdict", "ok")]  # fmt: skip
VERDICTS = {True: "yes", False: "NO", None: ""}


def run_checks(config: GpuCheckConfig, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every section's rows, and a row on how each section ended.

    `gpu_check.json` and `gpu_check.md` in the output folder are written anew after each section, so that a check that is
    cut off leaves what it has.

    Raises:
        HybridTokenizerError: a section is unknown, or the output folder holds an earlier check.
    """
    names = list(config.sections or SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise HybridTokenizerError(f"sections {unknown} are unknown; use some of {', '.join(SECTIONS)}")
    output = Path(config.output)
    if (output / "gpu_check.json").exists():
        raise HybridTokenizerError(f"{output / 'gpu_check.json'} exists; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    done: dict[str, list[dict[str, Any]]] = {}

    def one(name: str) -> None:
        done[name] = _run_section(name, config, output)
        say(f"{name}: {done[name][-1]['value']}, {sum(row['ok'] is False for row in done[name])} wrong")
        _write(output, config, [row for section in names for row in done.get(section, [])])

    if config.device == "cpu":  # the longest first, so that it does not end up alone
        with ThreadPoolExecutor(JOBS_ON_A_CPU) as pool:
            list(pool.map(one, sorted(names, key=lambda name: -SECTIONS[name].limit)))
    else:  # a GPU is measured by one section at a time
        for name in names:
            one(name)
    return [row for name in names for row in done[name]]


def _run_section(name: str, config: GpuCheckConfig, output: Path) -> list[dict[str, Any]]:
    rows, log = output / f"{name}.jsonl", output / f"{name}.log"
    rows.touch()
    limit = SECTIONS[name].limit * (REDUCED_LIMIT if config.device == "cpu" else 1)
    module = "hybrid_tokenizer.verification.gpu.sections"
    command = [sys.executable, "-m", module, name, json.dumps(asdict(config)), str(rows)]
    start = time.perf_counter()
    with open(log, "wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(timeout=limit)
            ended = "finished" if code == 0 else f"failed with exit code {code}, see {log.name}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            ended = f"ended after its limit of {limit} s"
    measured = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.unlink()
    seconds = {"section": name, "check": "time", "value": time.perf_counter() - start, "unit": "s", "expected": "", "ok": None}  # fmt: skip
    status = {"section": name, "check": "status", "value": ended, "unit": "", "expected": "finished", "ok": ended == "finished"}  # fmt: skip
    return [*measured, seconds, status]


def _write(output: Path, config: GpuCheckConfig, rows: list[dict[str, Any]]) -> None:
    write_json(output / "gpu_check.json", {"rows": rows, "config": asdict(config), "provenance": provenance()})
    table = to_markdown([{**row, "verdict": VERDICTS[row["ok"]]} for row in rows], COLUMNS)
    write_atomic(output / "gpu_check.md", table.encode())
