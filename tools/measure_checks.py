"""Measure what the checks on pictures and weights cost, and compare training loader and harness with another checkout.

    python tools/measure_checks.py --output FILE [--data FOLDER] [--base CHECKOUT]

Seconds are medians of interleaved repeats on one thread, in seconds of the processor, so that other load counts little. The
pictures are the built-in photographs in each format, or those of a folder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 90}),
    "progressive JPEG": ("JPEG", {"quality": 90, "progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"quality": 80}),
    "AVIF": ("AVIF", {"quality": 60}),
    "deflated TIFF": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}
SIDE = 256
EVALUATED = 28
SPEED_CODE = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from hybrid_tokenizer.data import TrainingStream, find_images
from hybrid_tokenizer.data.config import CropConfig
try:
    from hybrid_tokenizer.evaluation.images import EvalImages
    from hybrid_tokenizer.evaluation.loop import evaluate
    from hybrid_tokenizer.evaluation.measures import Metric
    from hybrid_tokenizer.evaluation.controls import LosslessGuide
except ImportError:  # an older checkout
    from hybrid_tokenizer.evaluation import EvalImages, Metric, evaluate
    from hybrid_tokenizer.baselines.controls import LosslessGuide
from hybrid_tokenizer.metrics import pixel
root, draws, side, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
stream = TrainingStream(find_images(root), CropConfig(side), seed=0)
metrics = [Metric("ssim", pixel.ssim), Metric("psnr", pixel.psnr)]
images = EvalImages.open(str(root), side, max_images=count, progress=False)
evaluate(LosslessGuide(side // 4), images, metrics, progress=False)
[stream[draw] for draw in range(8)]
print("ready", flush=True)
for what in sys.stdin:
    started = time.process_time()
    if what.strip() == "loader":
        [stream[draw] for draw in range(draws)]
    elif what.strip() == "images":
        EvalImages.open(str(root), side, max_images=count, progress=False)
    else:
        evaluate(LosslessGuide(side // 4), images, metrics, progress=False)
    print(time.process_time() - started, flush=True)
"""


def medians(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each side. The order turns around with every repeat."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sorted(sides, reverse=repeat % 2 == 0):
            started = time.process_time()
            sides[side]()
            seconds[side].append(time.process_time() - started)
    return {side: statistics.median(times) for side, times in seconds.items()}


def write_pictures(folder: Path) -> None:
    """The built-in photographs in every format, a folder for each."""
    from hybrid_tokenizer.data.samples import sample_photographs

    for name, (kind, options) in FORMATS.items():
        (folder / name).mkdir(parents=True)
        for title, photograph in sample_photographs().items():
            photograph.save(folder / name / f"{title}.{kind.lower()}", kind, **options)


def picture_rows(name: str, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds per picture at each level of `data.verify`: opened, and as a training draw with its crop."""
    from hybrid_tokenizer.data import TrainingStream, find_images, open_rgb
    from hybrid_tokenizer.data.config import LEVELS, CropConfig

    paths = find_images(folder)[:EVALUATED]
    streams = {level: TrainingStream(paths, CropConfig(SIDE), 0, level) for level in LEVELS}

    def open_all(level: str) -> None:
        for path in paths:
            open_rgb(path, verify=level)

    def draw_all(level: str) -> None:
        for draw in range(len(paths)):
            streams[level][draw]

    rows = []
    for what, function in (("open", open_all), ("training draw", draw_all)):
        seconds = medians({level: partial(function, level) for level in LEVELS}, repeats)
        rows.append(
            {"pictures": name, "n": len(paths), "what": what}
            | {f"{level}_ms": 1000 * seconds[level] / len(paths) for level in LEVELS}
            | {f"{level}_ratio": seconds[level] / seconds["off"] for level in LEVELS if level != "off"}
        )
    return rows


def weights_row(repeats: int) -> dict[str, Any]:
    """Seconds to load `tiny` with and without the check that its weights are finite."""
    from hybrid_tokenizer.checkpoints import files
    from hybrid_tokenizer.hybrid import HybridTokenizer

    def unchecked() -> None:
        with patch.object(files, "check_finite", lambda tensors, source: None):
            HybridTokenizer.from_pretrained("tiny")

    tensors = HybridTokenizer.from_pretrained("tiny").state_dict()
    sides = {
        "checked": lambda: HybridTokenizer.from_pretrained("tiny"),
        "unchecked": unchecked,
        "check": lambda: files.check_finite(tensors, "tiny"),
    }
    seconds = medians(sides, repeats)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    return {
        "model": "tiny", "load_seconds": seconds["checked"], "load_seconds_without": seconds["unchecked"],
        "check_seconds": seconds["check"], "check_gigabytes_per_second": size / seconds["check"] / 1e9,
    }  # fmt: skip


def compared_rows(folder: Path, base: Path, repeats: int) -> list[dict[str, Any]]:
    """Training loader and harness of this checkout and of `base`, interleaved. A ratio above 1 means that this one is slower."""
    processes = {
        side: subprocess.Popen(
            [sys.executable, "-c", SPEED_CODE, str(folder), "56", str(SIDE), str(EVALUATED)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)},
        )
        for side, checkout in {"ours": ROOT, "base": base.resolve()}.items()
    }  # fmt: skip
    rows = []
    for process in processes.values():
        while process.stdout.readline().strip() != "ready":
            if process.poll() is not None:
                raise SystemExit("error: a checkout cannot be measured; its own error is above")
    for what in ("loader", "images", "harness"):
        seconds: dict[str, list[float]] = {side: [] for side in processes}
        for repeat in range(repeats):
            for side in sorted(processes, reverse=repeat % 2 == 0):
                processes[side].stdin.write(f"{what}\n")
                processes[side].stdin.flush()
                seconds[side].append(float(processes[side].stdout.readline()))
        ours, theirs = (statistics.median(seconds[side]) for side in ("ours", "base"))
        rows.append({"what": what, "seconds": ours, "base_seconds": theirs, "ratio": ours / theirs, "repeats": repeats})
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="a folder of pictures to measure besides")
    parser.add_argument(
        "--base", type=Path, metavar="CHECKOUT", help="another checkout, whose loader and harness are compared"
    )
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()

    import torch

    from hybrid_tokenizer.checkpoints.files import write_json
    from hybrid_tokenizer.provenance import provenance

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_pictures(Path(scratch))
        folders = {name: Path(scratch) / name for name in FORMATS}
        if options.data is not None:
            folders[options.data.name] = options.data
        rows = [row for name, folder in folders.items() for row in picture_rows(name, folder, options.repeats)]
        result = {"pictures": rows, "weights": weights_row(options.repeats)}
        if options.base is not None:
            folder = options.data or folders["JPEG"]
            result["compared"] = compared_rows(folder, options.base, options.repeats)
    result["provenance"] = provenance()
    write_json(options.output, result)
    for row in (*result["pictures"], result["weights"], *result.get("compared", [])):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
