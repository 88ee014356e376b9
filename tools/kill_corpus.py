"""Kill `tokenize` again and again, and check that every row is stored exactly once with the tokens of an undisturbed run.

    python tools/kill_corpus.py --runs 20 --images 500 --work /tmp/kills --output kills.json

Each run kills, at a random moment, the driver, one Ray worker, or the driver with all processes that it started, in turn.
The same command is then given again until it ends. A run passes when the ids, the tokens and the files' sha256 equal those
of the undisturbed run.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hybrid_tokenizer.checkpoints.files import file_hash, write_json
from hybrid_tokenizer.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = ("driver", "worker", "group")
MOST_STARTS = 6
LONGEST = 600.0  # seconds of one start


def write_images(folder: Path, count: int) -> None:
    """Smooth pictures that differ from one another."""
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 64), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.png")


def start(images: Path, output: Path, options: argparse.Namespace) -> psutil.Popen:
    """The command, in a session of its own."""
    script = [sys.executable, str(ROOT / "scripts" / "tokenize_corpus.py")]
    arguments = [
        f"input={images}", f"output={output}", f"model_name={options.model}", f"data.image_size={options.image_size}",
        "batch_size=5", "rows_per_part=5", "shard_mb=0.05", "rows_per_group=50", "workers=2",
        "ray.num_cpus=2", "ray.object_store_mb=100",
    ]  # fmt: skip
    log = open(output.with_suffix(".log"), "a")  # noqa: SIM115  the process keeps it
    return psutil.Popen(script + arguments, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def kill(process: psutil.Popen, victim: str, rng: random.Random) -> str | None:
    """SIGKILL. Returns what was killed, None if it had ended."""
    try:
        family = process.children(recursive=True)
        if victim == "worker":
            workers = [one for one in family if _title(one).startswith("ray::")]
            if not workers:
                return None
            chosen = rng.choice(workers)
            name = _title(chosen)
            chosen.kill()
            return name
        process.kill()
    except psutil.NoSuchProcess:
        return None
    for one in family if victim == "group" else []:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    return victim


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def contents(output: Path) -> dict[str, Any]:
    """What a finished folder holds."""
    tables = [pq.read_table(path) for path in sorted((output / "data").glob("*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()
    return {
        "ids": [row["id"] for row in rows],
        "tokens": {row["id"]: (row["semantic"], row["guide"]) for row in rows},
        "files": {path.name: file_hash(path) for path in sorted((output / "data").iterdir())},
        "left": sorted(path.name for path in output.iterdir()),
    }


def finish(
    images: Path, output: Path, options: argparse.Namespace, victim: str, moment: float, rng: random.Random
) -> dict[str, Any]:
    """Start, kill once `moment` seconds after the plan is written, and start again until the dataset is there."""
    killed: list[str] = []
    parts = 0
    for starts in range(1, MOST_STARTS + 1):
        process = start(images, output, options)
        if starts == 1:
            while process.poll() is None and not (output / "_work" / "plan.json").exists():
                time.sleep(0.02)
            time.sleep(moment)
            parts = len(list((output / "_work" / "parts").glob("[0-9]*.parquet")))
            name = kill(process, victim, rng)
            killed += [name] if name else []
        try:
            process.wait(LONGEST)
        except psutil.TimeoutExpired:
            kill(process, "group", rng)
            process.wait()
            killed.append("hung")
        if (output / "dataset.json").exists() and not (output / "_work").exists():
            return {"victim": victim, "killed": killed, "moment": moment, "parts_stored": parts, "starts": starts}
    return {
        "victim": victim,
        "killed": killed,
        "moment": moment,
        "parts_stored": parts,
        "starts": MOST_STARTS,
        "failed": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="a new folder for images and tokens")
    parser.add_argument("--output", type=Path, required=True, help="the table, as JSON")
    options = parser.parse_args()
    images = options.work / "images"
    write_images(images, options.images)
    began = time.perf_counter()
    undisturbed = start(images, options.work / "undisturbed", options)
    while not (options.work / "undisturbed" / "_work" / "plan.json").exists() and undisturbed.poll() is None:
        time.sleep(0.02)
    planned = time.perf_counter()
    undisturbed.wait()
    seconds = time.perf_counter() - planned
    expected = contents(options.work / "undisturbed")
    print(
        f"undisturbed: {len(expected['ids'])} rows, {planned - began:.1f} s to the plan, {seconds:.1f} s from there",
        flush=True,
    )
    rng = random.Random(options.seed)
    rows = []
    for run in range(options.runs):
        output = options.work / f"run{run:02d}"
        row = {"run": run} | finish(images, output, options, VICTIMS[run % 3], rng.uniform(0, seconds), rng)
        if "failed" not in row:
            found = contents(output)
            row |= {
                "rows": len(found["ids"]),
                "repeated": len(found["ids"]) - len(set(found["ids"])),
                "lost": len(set(expected["ids"]) - set(found["ids"])),
                "other_tokens": sum(found["tokens"].get(key) != value for key, value in expected["tokens"].items()),
                "same_files": found["files"] == expected["files"],
                "same_folder": found["left"] == expected["left"],
            }
            shutil.rmtree(output)
        rows.append(row)
        print(json.dumps(row), flush=True)
    passed = [
        row for row in rows if row.get("same_files") and not (row["repeated"] or row["lost"] or row["other_tokens"])
    ]
    write_json(
        options.output,
        {
            "images": options.images,
            "undisturbed_seconds": seconds,
            "passed": len(passed),
            "runs": rows,
            "provenance": provenance(),
        },
    )
    print(f"{len(passed)} of {len(rows)} runs passed")
    if len(passed) < len(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
