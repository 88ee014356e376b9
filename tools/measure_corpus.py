"""Measure `tokenize`: rate, waiting, memory and processor time of a whole corpus, and its ratio to a plain PyTorch loop.

    python tools/measure_corpus.py run --output corpus.json input='[data/a,data/b]' output=TOKENS workers=2
    python tools/measure_corpus.py ratio --images 2000 --work /tmp/ratio --output ratio.json data/a data/b
    python tools/measure_corpus.py stages --images 256 --output stages.json data/a data/b
    python tools/measure_corpus.py damaged --images 400 --work /tmp/damaged --output damaged.json data/a

Memory is the sum of the proportional set sizes (PSS) of the driver and all processes that it started, so shared memory counts
once. Other programs may use the cores meanwhile: `cores_of_others` says how many. Processor time per image depends little
on them, and the ratio alternates both sides within pairs.
"""

import argparse
import json
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_tokenizer.checkpoints.files import write_json
from hybrid_tokenizer.data.folders import find_images
from hybrid_tokenizer.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 2.0
EARLY_ROWS = 2000
"""Peak memory until so many rows are stored is compared with the peak of the whole run."""
PLAIN_BATCH, PLAIN_WORKERS = 8, 2


class Watch:
    """Samples a process and its descendants until it ends."""

    def __init__(self, command: list[str], work: Path | None = None):
        self.work, self.stored = work, 0
        self.peak, self.early_peak, self.processor = 0, 0, {}
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment["RAY_worker_niceness"] = "0"  # as the plain loop; otherwise every other program comes first
        started, before = time.perf_counter(), psutil.cpu_times()
        self.process = psutil.Popen([sys.executable, *command], env=environment)
        sampling = threading.Thread(target=self._sample, daemon=True)
        sampling.start()
        if self.process.wait():
            raise SystemExit(f"{' '.join(command)} ended with exit status {self.process.returncode}")
        sampling.join()
        self.seconds = time.perf_counter() - started
        after = psutil.cpu_times()
        names = ("user", "system", "nice")
        self.used = sum(getattr(after, name) - getattr(before, name) for name in names)

    def _sample(self) -> None:
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            memory = 0
            for one in self._family():
                try:
                    times = one.cpu_times()
                    self.processor[(one.pid, one.create_time())] = times.user + times.system
                    memory += one.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, memory)
            self.stored = max(self.stored, self._stored_rows())
            if self.stored <= EARLY_ROWS:
                self.early_peak = self.peak
            time.sleep(SAMPLE_SECONDS)

    def _family(self) -> list[psutil.Process]:
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.Error:
            return []

    def _stored_rows(self) -> int:
        if self.work is None or not (self.work / "plan.json").exists():
            return 0
        size = json.loads((self.work / "plan.json").read_text())["images_per_part"]
        return len(list((self.work / "parts").glob("[0-9]*.parquet"))) * size

    def facts(self, images: int) -> dict[str, Any]:
        """What was seen, per image where that makes sense."""
        processor = sum(self.processor.values())
        return {
            "seconds": self.seconds,
            "images_per_second": images / self.seconds,
            "processor_seconds": processor,
            "images_per_processor_second": images / processor,
            "cores_used": processor / self.seconds,
            "cores_of_others": (self.used - processor) / self.seconds,
            "peak_memory_bytes": self.peak,
        }


def tokenize_command(options: list[str]) -> list[str]:
    return [str(ROOT / "scripts" / "tokenize_corpus.py"), *options]


def measure_run(options: argparse.Namespace) -> dict[str, Any]:
    """One run of the command over a whole corpus."""
    output = Path(next(one for one in options.command if one.startswith("output=")).removeprefix("output="))
    watch = Watch(tokenize_command(options.command), output / "_work")
    dataset, report = (json.loads((output / name).read_text()) for name in ("dataset.json", "report.json"))
    files = dataset["files"]
    return {
        "command": options.command,
        "num_images": dataset["num_images"],
        "num_rows": dataset["num_rows"],
        "num_skipped": dataset["num_skipped"],
        "skipped": dataset["skipped"],
        "tokens_per_row": dataset["tokens_per_row"],
        "files": len(files),
        "bytes_per_row": sum(file["num_bytes"] for file in files) / dataset["num_rows"],
        **watch.facts(report["num_rows"]),
        f"peak_memory_bytes_at_{EARLY_ROWS}": watch.early_peak,
        "report": report,
    }


def plain_loop(folder: Path, output: Path, model: str) -> None:
    """What one writes without a corpus tool: a DataLoader, and the encoder on all cores."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from hybrid_tokenizer.data.open import open_rgb
    from hybrid_tokenizer.hybrid import HybridTokenizer
    from hybrid_tokenizer.images import fit_square

    class Images(Dataset):
        def __init__(self) -> None:
            self.paths = find_images(folder)

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
            image = fit_square(open_rgb(self.paths[index]), 256)
            return self.paths[index].relative_to(folder).as_posix(), torch.from_numpy(np.asarray(image).copy())

    tokenizer = HybridTokenizer.from_pretrained(model)
    columns: dict[str, list] = {"id": [], "semantic": [], "guide": []}
    encoding = 0.0
    began = time.perf_counter()
    for names, pixels in DataLoader(Images(), batch_size=PLAIN_BATCH, num_workers=PLAIN_WORKERS):
        started = time.perf_counter()
        tokens = tokenizer.encode(pixels.permute(0, 3, 1, 2))
        encoding += time.perf_counter() - started
        columns["id"] += names
        columns["semantic"] += tokens.semantic_indices.tolist()
        columns["guide"] += torch.cat([grid.flatten(1) for grid in tokens.guide_indices], dim=1).tolist()
    seconds = time.perf_counter() - began
    pq.write_table(pa.table(columns), output)
    facts = {"loop_seconds": seconds, "encode_seconds": encoding, "waiting_share": 1 - encoding / seconds}
    write_json(output.with_suffix(".json"), facts | {"threads": torch.get_num_threads()})


def measure_ratio(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides on the same images, half of them at a time; the order within a pair alternates."""
    paths = [path for folder in options.folders for path in find_images(Path(folder))][: options.images]
    base = Path(os.path.commonpath(options.folders))
    runs: list[dict[str, Any]] = []
    held: dict[str, dict[str, Any]] = {"ours": {}, "plain": {}}
    for pair in range(2):
        mine = paths[pair::2]
        folder = options.work / f"images{pair}"
        for path in mine:
            link = folder / path.relative_to(base)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
        for side in ("ours", "plain") if pair == 0 else ("plain", "ours"):
            output = options.work / f"{side}{pair}"
            if side == "ours":
                command = [f"input={folder}", f"output={output}", f"model_name={options.model}", "workers=2", "ray.num_cpus=2",
                           "rows_per_part=64"]  # fmt: skip
                watch = Watch(tokenize_command(command))
                report = json.loads((output / "report.json").read_text())
                busy = (
                    report["encode_seconds"] + report["wait_seconds"]
                ) / 2  # per worker, from its first part to its last
                facts = {
                    name: report[name] for name in ("waiting_share", "cut_seconds", "encode_seconds", "wait_seconds")
                }
                facts["loop_seconds"] = busy
                table = pq.read_table(sorted((output / "data").glob("*.parquet")))
            else:
                output = output.with_suffix(".parquet")
                watch = Watch(
                    [str(Path(__file__).resolve()), "plain", "--model", options.model, str(folder), str(output)]
                )
                facts = json.loads(output.with_suffix(".json").read_text())
                table = pq.read_table(output)
            held[side] |= {row["id"]: (row["semantic"], row["guide"]) for row in table.to_pylist()}
            facts["loop_images_per_second"] = table.num_rows / facts["loop_seconds"]
            runs.append({"pair": pair, "side": side, "images": table.num_rows, **watch.facts(table.num_rows), **facts})
            print(json.dumps(runs[-1]), flush=True)
    return {"images": len(paths), "runs": runs, "ratios": ratios(runs), **equal_tokens(held["ours"], held["plain"])}


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Ours over plain, of all images: with start and end, within the loop, and per second of processor time."""

    def rate(side: str, name: str) -> float:
        mine = [run for run in runs if run["side"] == side]
        return sum(run["images"] for run in mine) / sum(run[name] for run in mine)

    names = {"whole_command": "seconds", "loop": "loop_seconds", "processor_time": "processor_seconds"}
    return {label: rate("ours", name) / rate("plain", name) for label, name in names.items()}


def equal_tokens(ours: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Rows that one side lacks, and the share of equal tokens."""
    common = ours.keys() & plain.keys()
    equal = [np.concatenate(ours[key]) == np.concatenate(plain[key]) for key in common]
    return {"rows_of_one_side": len(ours.keys() ^ plain.keys()), "equal_tokens": float(np.mean(equal))}


def damaged_files() -> dict[str, Callable[[bytes], bytes]]:
    """Kinds of damage, each made from an image's bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def picture(width: int, height: int, data: bytes) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")

    return {
        "truncated": lambda data: data[: len(data) // 2],
        "bomb": lambda data: picture(60_000, 60_000, b"0"),
        "text": lambda data: b"no image",
        "empty": lambda data: b"",
        "one pixel": lambda data: picture(1, 1, bytes(4)),
    }


def measure_damaged(options: argparse.Namespace) -> dict[str, Any]:
    """One image in twenty damaged, by each kind in turn: what the run lists."""
    paths = [path for folder in options.folders for path in find_images(Path(folder))][: options.images]
    kinds, damage = damaged_files(), {}
    images, output = options.work / "images", options.work / "tokens"
    images.mkdir(parents=True)
    for number, path in enumerate(paths):
        target = images / f"{number:05d}{path.suffix}"
        if number % 20 == 10:
            damage[target.name] = list(kinds)[len(damage) % len(kinds)]
            target.write_bytes(kinds[damage[target.name]](path.read_bytes()))
        else:
            target.symlink_to(path.absolute())
    watch = Watch(tokenize_command([f"input={images}", f"output={output}", f"model_name={options.model}", "workers=1", "ray.num_cpus=1"]))  # fmt: skip
    dataset = json.loads((output / "dataset.json").read_text())
    reasons = {one["key"]: one["reason"] for one in dataset["skipped"]}
    return {
        "images": len(paths),
        "num_rows": dataset["num_rows"],
        "damaged": {kind: sum(one == kind for one in damage.values()) for kind in kinds},
        "not_listed": sorted(damage.keys() - reasons.keys()),
        "others_listed": {key: reason for key, reason in reasons.items() if key not in damage},
        "reasons": {kind: sorted({reasons[key] for key in damage if damage[key] == kind}) for kind in kinds},
        **watch.facts(dataset["num_rows"]),
    }


def measure_stages(options: argparse.Namespace) -> dict[str, Any]:
    """Processor time per image of each stage, in one process on one thread."""
    import torch

    from hybrid_tokenizer.corpus.config import ColumnConfig, EncoderConfig, ViewConfig
    from hybrid_tokenizer.corpus.encoder import Encoder, describe_tokenizer
    from hybrid_tokenizer.corpus.rows import cut_rows, token_rows, token_schema
    from hybrid_tokenizer.corpus.sources import fetch, list_entries
    from hybrid_tokenizer.corpus.storage import open_folder

    torch.set_num_threads(1)
    described, grids = describe_tokenizer(options.model, 256, None)
    sizes = described["semantic_codebook_size"], described["guide_codebook_size"]
    schema = token_schema(sizes, sum(height * width for height, width in grids))
    encoder = Encoder(EncoderConfig(options.model, described["hash"], "cpu", "float32", 1, 64, None, 0))
    began = time.process_time()
    entries = list(list_entries(options.folders, ColumnConfig()))
    listing = 1000 * (time.process_time() - began) / len(entries)
    entries = entries[:: max(1, len(entries) // options.images)][: options.images]
    encoder.encode(np.zeros((64, 256, 256, 3), np.uint8))  # the first call allocates
    seconds: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = run()
        seconds[name] = time.process_time() - began
        return result

    fetched = timed("read", lambda: list(fetch(entries, ColumnConfig())))
    facts, pixels = timed("decode_and_cut", lambda: cut_rows(fetched, ViewConfig()))
    timed("decode_and_cut_with_draft", lambda: cut_rows(fetched, ViewConfig(jpeg_draft=True)))
    tokens = timed("encode", lambda: encoder.encode(pixels))
    rows = timed("table", lambda: token_rows(facts, tokens, grids, schema, 256))
    written = timed("write", lambda: open_folder(options.work).write_table("rows.parquet", rows))
    return {
        "images": len(entries),
        "milliseconds_per_image": {
            "list": listing,
            **{name: 1000 * value / len(entries) for name, value in seconds.items()},
        },
        "bytes_read_per_image": sum(len(one.data) for one in fetched if isinstance(one.data, bytes)) / len(entries),
        "bytes_written_per_row": written / rows.num_rows,
        "threads": 1,
        "batch_size": 64,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    run = parts.add_parser("run", help="one run of the command")
    run.add_argument("--output", type=Path, required=True)
    run.add_argument("command", nargs="+", metavar="OPTION=VALUE", help="of tokenize; output= must be local")
    on_folders = {"ratio": ("against a plain loop", 2000), "damaged": ("a corpus of which 5 % is damaged", 400), "stages": ("processor time of each stage", 256)}  # fmt: skip
    for name, (purpose, images) in on_folders.items():
        part = parts.add_parser(name, help=purpose)
        part.add_argument("--output", type=Path, required=True)
        part.add_argument("--images", type=int, default=images)
        part.add_argument("--model", default="tiny")
        part.add_argument("--work", type=Path, required=True, help="a new folder for links and tokens")
        part.add_argument("folders", nargs="+")
    plain = parts.add_parser("plain", help="the plain loop alone")
    plain.add_argument("--model", default="tiny")
    plain.add_argument("folder", type=Path)
    plain.add_argument("table", type=Path)
    options = parser.parse_args()
    if options.part == "plain":
        plain_loop(options.folder, options.table, options.model)
        return
    measures = {"run": measure_run, "ratio": measure_ratio, "damaged": measure_damaged, "stages": measure_stages}
    found = measures[options.part](options)
    write_json(options.output, found | {"provenance": provenance()})
    print(
        json.dumps(
            {name: value for name, value in found.items() if name not in ("skipped", "runs", "report")}, indent=1
        )
    )


if __name__ == "__main__":
    main()
