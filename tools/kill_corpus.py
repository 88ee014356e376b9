"""Kill `tokenize` again and again, and check that every row is stored exactly once with the tokens of an undisturbed run.

    python tools/kill_corpus.py --runs 20 --images 500 --work /tmp/kills --output kills.json
    python tools/kill_corpus.py --runs 3 --images 500 --victims node --work /tmp/nodes --output nodes.json
    python tools/kill_corpus.py --runs 9 --images 500 --engine checkpoint --work /tmp/checkpoint --output checkpoint.json

Each run kills one victim at a random moment: the driver, one Ray worker, or the driver with all processes that it started, in
turn. The same command is then given again until it ends. A run passes when the ids, the tokens and the files' sha256 equal
those of the undisturbed run. Runs whose driver or worker is killed share one Ray; each of the others starts its own. The victim
`node` is one raylet of two, on this machine.

`--engine checkpoint` puts a stand-in for `tokenize` in its place: the same steps without a model, stored by Ray's Parquet
writer and resumed by Ray Data's CheckpointConfig. Its files have new names in each run, so their sha256 is not compared.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hybrid_tokenizer.checkpoints.files import file_hash, write_atomic, write_json
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = ("driver", "worker", "group")
WORKERS = ("ray::MapWorker", "ray::MapBatches", "ray::Write", "ray::IDLE")
"""Titles of the processes that do the work. Others are Ray's own helpers, such as a node's agents."""
MOST_STARTS = 4
STORE_MB = 100
IDS_PER_FILE = 5
ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Ray's workers otherwise give way to every other program, and a run beside one takes many times as long."""
COLUMNS = [
    Column("run", "run", "d"), Column("victim", "victim"), Column("killed", "killed process"),
    Column("moment", "after, s", ".1f"), Column("parts_stored", "parts stored", "d"), Column("starts", "starts", "d"),
    Column("rows", "rows", "d"), Column("repeated", "repeated", "d"), Column("lost", "lost", "d"),
    Column("other_tokens", "other tokens", "d"), Column("unreadable", "unreadable files", "d"),
    Column("equal_files", "equal files"),
]  # fmt: skip


class Engine(NamedTuple):
    """What is started and killed."""

    command: Callable[[Path, Path, argparse.Namespace, str | None], list[str]]
    begun: str
    """The file that appears when the work starts."""
    stored: str
    """Pattern of the files that record finished work."""
    data: str
    """Where the rows are."""
    finished: Callable[[Path], bool]
    cores: Callable[[argparse.Namespace], int]
    """That Ray is given."""


def tokenize_command(images: Path, output: Path, options: argparse.Namespace, address: str | None) -> list[str]:
    """The command of the package."""
    engine = (
        [f"ray.address={address}"]
        if address
        else [f"ray.num_cpus={options.workers}", f"ray.object_store_mb={STORE_MB}"]
    )
    return [
        str(ROOT / "scripts" / "tokenize_corpus.py"), f"input={images}", f"output={output}", f"model_name={options.model}",
        f"data.image_size={options.image_size}", "batch_size=10", "rows_per_part=10", "shard_mb=0.05", "rows_per_group=50",
        f"workers={options.workers}", *engine,
    ]  # fmt: skip


def checkpoint_command(images: Path, output: Path, options: argparse.Namespace, address: str | None) -> list[str]:
    """The stand-in, on the names of the images."""
    return [
        str(Path(__file__).resolve()),
        "--checkpoint-job",
        str(images),
        str(output),
        str(options.checkpoint_cores),
        address or "",
    ]


ENGINES = {
    "parts": Engine(
        tokenize_command,
        "_work/plan.json",
        "_work/parts/[0-9]*.parquet",
        "data",
        lambda output: (output / "dataset.json").exists() and not (output / "_work").exists(),
        lambda options: options.workers,
    ),
    "checkpoint": Engine(
        checkpoint_command,
        "begun",
        "checkpoint/*.parquet",
        "data",
        lambda output: (output / "done").exists(),
        lambda options: options.checkpoint_cores,
    ),
}


def checkpoint_job(images: Path, output: Path, cores: int, address: str) -> None:
    """List, cut, encode and write on Ray Data, with its own writer and its own checkpoints."""
    import ray
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    class Encode:
        def __call__(self, table: pa.Table) -> pa.Table:
            time.sleep(0.02)
            names = table.column("id").to_pylist()
            codes = [np.random.default_rng(int(Path(name).stem)).integers(0, 2**16, 32, np.uint16) for name in names]
            return pa.table({"id": names, "semantic": codes, "guide": codes})

    def cut(table: pa.Table) -> pa.Table:
        time.sleep(0.02)
        return table.append_column("pixels", pa.array([bytes(3000)] * len(table)))

    listed = output / "list"
    if not listed.exists():  # the checkpoint's filter follows a read, so the names come from files
        listed.mkdir(parents=True)
        names = sorted(path.name for path in images.iterdir())
        for first in range(0, len(names), IDS_PER_FILE):
            pq.write_table(pa.table({"id": names[first : first + IDS_PER_FILE]}), listed / f"{first:05d}.parquet")
    own = {"num_cpus": cores, "object_store_memory": STORE_MB * 2**20, "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, logging_level="error", **({} if address else own))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size, context.target_min_block_size = 15_000, 100  # so that a block is one part
    context.checkpoint_config = CheckpointConfig("id", str(output / "checkpoint"), delete_checkpoint_on_success=False)
    (output / "begun").touch()
    rows = ray.data.read_parquet(str(listed), override_num_blocks=len(list(listed.iterdir())))
    rows = rows.map_batches(cut, batch_size=IDS_PER_FILE, batch_format="pyarrow", num_cpus=0.25)
    rows = rows.map_batches(
        Encode,
        batch_size=IDS_PER_FILE,
        batch_format="pyarrow",
        num_cpus=0.75,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    rows.write_parquet(str(output / "data"), ray_remote_args={"num_cpus": 0.25})
    (output / "done").touch()


def write_images(folder: Path, count: int) -> None:
    """Smooth pictures that differ from one another."""
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 64), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.png")


def start(images: Path, output: Path, options: argparse.Namespace, address: str | None = None) -> psutil.Popen:
    """The command, in a session of its own."""
    command = ENGINES[options.engine].command(images, output, options, address)
    with open(output.with_suffix(".log"), "a") as log:
        return psutil.Popen(
            [sys.executable, *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )


class Nodes:
    """Raylets on this machine. Drivers connect to the first; another can be killed."""

    def __init__(self, count: int, cores: int):
        from ray.cluster_utils import Cluster

        os.environ.update(ENVIRONMENT)
        node = {"num_cpus": cores, "object_store_memory": STORE_MB * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        self.others = [self.cluster.add_node(**node) for _ in range(count - 1)]
        self.address = self.cluster.address

    def workers(self, node: Any) -> list[psutil.Process]:
        """Those on a node that read, cut, encode or write."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [one for one in raylet.children(recursive=True) if _title(one).startswith(WORKERS)]

    def kill_other(self) -> str:
        """SIGKILL to the last raylet. Returns what ran there."""
        node = self.others.pop()
        titles = [_title(one) for one in self.workers(node)]
        self.cluster.remove_node(node, allow_graceful=False)
        return f"raylet with {sum('EncodePart' in title for title in titles)} tokenizers among {len(titles)} workers"

    def close(self) -> None:
        """End all processes."""
        self.cluster.shutdown()


def kill(process: psutil.Popen, victim: str, nodes: Nodes | None, rng: random.Random) -> str | None:
    """SIGKILL. Returns what was killed, None if it had ended."""
    try:
        if victim == "node":
            return nodes.kill_other()
        family = process.children(recursive=True)
        if victim == "worker":
            chosen = rng.choice(nodes.workers(nodes.cluster.head_node))
            name = _title(chosen)
            chosen.kill()
            return name
        process.kill()
    except (psutil.NoSuchProcess, IndexError):
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


def contents(output: Path, engine: Engine) -> dict[str, Any]:
    """What a finished folder holds."""
    tables, unreadable = [], 0
    for path in sorted((output / engine.data).glob("*.parquet")):
        try:
            tables.append(pq.read_table(path))
        except pa.ArrowInvalid:
            unreadable += 1
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        "ids": [row["id"] for row in rows],
        "tokens": {row["id"]: (row["semantic"], row["guide"]) for row in rows},
        "files": {path.name: file_hash(path) for path in sorted((output / engine.data).iterdir())},
        "unreadable": unreadable,
    }


def finish(
    images: Path,
    output: Path,
    options: argparse.Namespace,
    victim: str,
    moment: float,
    shared: Nodes,
    rng: random.Random,
) -> dict[str, Any]:
    """Start, kill once `moment` seconds after the work has begun, and start again until it is done."""
    engine = ENGINES[options.engine]
    nodes = {"driver": shared, "worker": shared, "group": None}[victim] if victim != "node" else Nodes(2, 1)
    killed: list[str] = []
    parts = starts = 0
    while not engine.finished(output) and starts < MOST_STARTS:
        starts += 1
        process = start(images, output, options, nodes.address if nodes else None)
        if starts == 1:
            while process.poll() is None and not (output / engine.begun).exists():
                time.sleep(0.02)
            time.sleep(moment)
            parts = len(list(output.glob(engine.stored)))
            name = kill(process, victim, nodes, rng) if process.poll() is None else None
            killed += [name] if name else []
        try:
            process.wait(options.longest)
        except psutil.TimeoutExpired:
            kill(process, "group", nodes, rng)
            process.wait()
            killed.append("hung")
    if victim == "node":
        nodes.close()
    row = {"victim": victim, "killed": ", ".join(killed), "moment": moment, "parts_stored": parts, "starts": starts}
    return row | {"finished": engine.finished(output)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--workers", type=int, default=1, help="tokenizers, with a core each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", default=VICTIMS, choices=(*VICTIMS, "node"))
    parser.add_argument("--engine", default="parts", choices=ENGINES)
    parser.add_argument("--checkpoint-cores", type=int, default=6, help="that Ray is given with --engine checkpoint")
    parser.add_argument("--longest", type=float, default=300.0, help="seconds after which a start counts as hung")
    parser.add_argument("--work", type=Path, help="a new folder for images and tokens")
    parser.add_argument("--output", type=Path, help="the table, as JSON and Markdown")
    parser.add_argument("--checkpoint-job", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.checkpoint_job:
        images, output, cores, address = options.checkpoint_job
        checkpoint_job(Path(images), Path(output), int(cores), address)
    elif options.work is None or options.output is None:
        parser.error("give --work and --output")
    else:
        study(options)


def study(options: argparse.Namespace) -> None:
    """All runs, and the table of what they left."""
    engine = ENGINES[options.engine]
    images, reference = options.work / "images", options.work / "undisturbed"
    write_images(images, options.images)
    shared = Nodes(1, engine.cores(options))
    began = time.perf_counter()
    undisturbed = start(images, reference, options, shared.address)
    while not (reference / engine.begun).exists() and undisturbed.poll() is None:
        time.sleep(0.02)
    planned = time.perf_counter()
    undisturbed.wait()
    seconds = time.perf_counter() - planned
    expected = contents(reference, engine)
    print(
        f"undisturbed: {len(expected['ids'])} rows, {planned - began:.1f} s to the start of the work, {seconds:.1f} s from there",
        flush=True,
    )
    rng = random.Random(options.seed)
    rows = []
    for run in range(options.runs):
        output = options.work / f"run{run:02d}"
        victim = options.victims[run % len(options.victims)]
        moment = rng.uniform(0, 0.8 * seconds)
        row = finish(images, output, options, victim, moment, shared, rng)
        while not row["killed"]:  # it had ended by then
            shutil.rmtree(output)
            moment /= 2
            row = finish(images, output, options, victim, moment, shared, rng)
        row = {"run": run} | row
        found = contents(output, engine) if (output / engine.data).exists() else None
        if found:
            row |= {
                "rows": len(found["ids"]),
                "repeated": len(found["ids"]) - len(set(found["ids"])),
                "lost": len(set(expected["ids"]) - set(found["ids"])),
                "other_tokens": sum(value != expected["tokens"].get(key) for key, value in found["tokens"].items()),
                "unreadable": found["unreadable"],
            }
            if options.engine == "parts":
                row["equal_files"] = "yes" if found["files"] == expected["files"] else "no"
        if row["finished"]:
            shutil.rmtree(output)
        rows.append(row)
        print(json.dumps(row), flush=True)
        facts = {"undisturbed_rows": len(expected["ids"]), "undisturbed_seconds": seconds}
        write_result(options, facts, rows)
    shared.close()
    passed = sum(map(has_passed, rows))
    print(f"{passed} of {len(rows)} runs passed")


def has_passed(row: dict[str, Any]) -> bool:
    """Whether a run left every row once, with the right tokens."""
    wrong = any(row.get(name) != 0 for name in ("repeated", "lost", "other_tokens", "unreadable"))
    return row["finished"] and not wrong and row.get("equal_files") != "no"


def write_result(options: argparse.Namespace, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The table so far."""
    passed = sum(map(has_passed, rows))
    settings = {
        name: getattr(options, name)
        for name in ("engine", "images", "image_size", "model", "workers", "checkpoint_cores", "longest", "seed")
    }
    write_json(options.output, {**settings, **facts, "passed": passed, "rows": rows, "provenance": provenance()})
    text = f"{to_markdown(rows, COLUMNS)}\n{passed} of {len(rows)} runs passed.\n"
    write_atomic(options.output.with_suffix(".md"), text.encode())


if __name__ == "__main__":
    main()
