"""The rows of a training step, of evaluation and of start-up."""

import contextlib
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_tokenizer.data import TrainingStream, find_images, sample_photographs
from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.evaluation.controls import LosslessGuide, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate, evaluate_rows, reconstruct
from hybrid_tokenizer.evaluation.measures import Metric, default_metrics
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.perceptual import (
    KEPT_BYTES,
    EfficientNetDistance,
    FeatureDistance,
    KeptFeatures,
    SqueezeNetDistance,
    feature_distance,
    has_squeezenet,
)
from hybrid_tokenizer.protocol import ImageTokenizer
from hybrid_tokenizer.training.config import GuideLossOptions, TrainingConfig
from hybrid_tokenizer.training.guide import GuideObjective
from hybrid_tokenizer.training.loop import choose_precision, train
from hybrid_tokenizer.verification.speed.alternatives import all_measures, scikit_image_measures, train_guide_plainly
from hybrid_tokenizer.verification.speed.bench import Bench
from hybrid_tokenizer.verification.speed.timing import Contest, Timed

HARNESS_COPIES = 8  # of the built-in photographs
MEMORY_IMAGES = (1000, 4000)
FEWER_IMAGES = (50, 200)
"""Of the reduced form."""
PLAIN_IMPORTS = (
    "from diffusers import AutoencoderKL, DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel; "
    "from transformers import Blip2QFormerModel, Blip2VisionModel"
)


class _StampedObjective(GuideObjective):
    """Records the time of each step's loss, so that start-up and the final save are not counted."""

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        self.stamps.append(time.perf_counter())
        losses = super().forward(batch, step)
        self.losses.append(losses["total"].detach())
        return losses


def train_guide(bench: Bench) -> dict[str, Any]:
    """One step of the guide's training."""
    config = TrainingConfig(
        max_steps=bench.config.train_steps, batch_size=bench.config.batch_size, warmup_steps=0, tracker="none",
        progress=False, num_threads=torch.get_num_threads(),
    )  # fmt: skip
    model = copy.deepcopy(bench.tokenizer.guide).train()
    with tempfile.TemporaryDirectory() as scratch:
        root = bench.photographs_folder(Path(scratch))
        stream = TrainingStream(find_images(root), CropConfig(bench.config.image_size), seed=0)

        def ours() -> Timed:
            objective = _StampedObjective(copy.deepcopy(model), GuideLossOptions())
            objective.stamps, objective.losses = [], []
            with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(sys.stderr):
                train(objective, stream, [], config, Path(output), {})
            return Timed(objective.stamps[-1] - objective.stamps[0], objective.losses[0].item())

        def theirs() -> Timed:
            plain = copy.deepcopy(model).to(bench.device, memory_format=torch.contiguous_format)
            bf16 = choose_precision(config) == "bf16"
            return Timed(
                *train_guide_plainly(plain, stream, config.max_steps, config.batch_size, config.learning_rate, bf16)
            )

        contest = Contest(
            name="train_guide",
            unit="steps/s",
            ours=ours,
            alternative=theirs,
            amount=config.max_steps - 1,
            difference=lambda left, right: abs(left - right),
            notes={
                "ours_is": "training.loop.train: clipping, averaged weights, exact resuming, checks",
                "alternative_is": "a single-process PyTorch loop with AdamW and clipping, the same precision and loader",
                "difference_is": "of the first step's loss",
                "batch_size": config.batch_size,
                "precision": choose_precision(config),
            },
        )
        return bench.measure(contest)


def harness(bench: Bench) -> dict[str, Any]:
    """All measures of the main table."""
    size = bench.config.image_size
    metrics = [metric for metric in default_metrics(bench.device) if size >= metric.least_side]
    nets = [EfficientNetDistance(name).to(bench.device) for name in ("lite2", "lite0")]
    squeezenet = SqueezeNetDistance().to(bench.device) if has_squeezenet() else None
    measures = partial(all_measures, lite2=nets[0], lite0=nets[1], squeezenet=squeezenet)
    notes = {
        "ours_is": f"evaluate with the table's {len(metrics)} measures and intervals, batch {bench.config.batch_size}; the "
        "references' features are kept, as between the rows of a table",
        "alternative_is": "a loop over images: scikit-image, pytorch-msssim, piq, NumPy, the same feature networks",
    }
    tokenizer = LosslessGuide(size // 4)
    row = bench.measure(harness_contest(bench, "harness", tokenizer, bench.eval_images, metrics, measures, notes))
    return row | {"profile_ms_per_image": profile(bench, tokenizer, metrics)}


@torch.no_grad()
def profile(bench: Bench, tokenizer: ImageTokenizer, metrics: list[Metric]) -> dict[str, float]:
    """Milliseconds per image of the row's own decoding and of each measure, the median of `repeats` passes over the images."""
    batches = list(bench.eval_images.own_batches(bench.config.batch_size, bench.device))
    outputs: list[Tensor] = []

    def decode() -> None:
        outputs[:] = [reconstruct(tokenizer, batch, torch.Generator().manual_seed(0))[0] for batch in batches]

    def measure(metric: Metric) -> None:
        for output, batch in zip(outputs, batches, strict=True):
            metric(output, batch)

    def milliseconds(action: Callable[[], None]) -> float:
        seconds = []
        for _ in range(bench.config.repeats):
            start = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - start)
        return round(1000 * statistics.median(seconds) / len(bench.eval_images), 2)

    return {"decode": milliseconds(decode), **{m.name: milliseconds(partial(measure, m)) for m in metrics}}


def harness_references(bench: Bench) -> dict[str, Any]:
    """The feature distances of several rows, whose references' features are computed once, or once a row."""
    rows = [LosslessGuide(bench.config.image_size // factor) for factor in (2, 4, 8, 16)]
    for row in rows:
        row.name = f"lossless {row.guide_size}"
    networks: list[FeatureDistance] = [EfficientNetDistance(name).to(bench.device) for name in ("lite2", "lite0")]
    networks += [SqueezeNetDistance().to(bench.device)] if has_squeezenet() else []

    def values(most_bytes: int) -> dict[str, list[float]]:
        metrics = [
            Metric(f"distance {i}", partial(feature_distance, network, kept=KeptFeatures(most_bytes)))
            for i, network in enumerate(networks)
        ]
        done = evaluate_rows(rows, bench.eval_images, metrics, batch_size=8, device=bench.device, progress=False)
        return {metric.name: [one.row[metric.name] for one in done] for metric in metrics}

    def difference(left: dict[str, list[float]], right: dict[str, list[float]]) -> float:
        return max(abs(a - b) for name in left for a, b in zip(left[name], right[name], strict=True))

    return bench.measure(
        Contest(
            name="harness_references",
            unit="images/s",
            ours=lambda: values(KEPT_BYTES),
            alternative=lambda: values(0),
            amount=len(rows) * len(bench.eval_images),
            difference=difference,
            notes={
                "ours_is": f"evaluate_rows, {len(rows)} rows and {len(networks)} feature distances, references' features kept",
                "alternative_is": "the same with the references' features computed for every row",
                "difference_is": "largest difference of a distance's mean",
                "n": len(bench.eval_images),
            },
        )
    )


def harness_ssim_psnr(bench: Bench) -> dict[str, Any]:
    """The paper's two measures, on a tokenizer that takes no time."""
    metrics = [Metric("ssim", pixel.ssim), Metric("psnr", pixel.psnr)]
    photographs = sample_photographs()
    names = [f"{name} {i}" for i in range(HARNESS_COPIES) for name in photographs]
    images = EvalImages(names, lambda name: photographs[name.split()[0]], bench.config.image_size, progress=False)
    notes = {
        "ours_is": f"evaluate with SSIM and PSNR and their intervals, batch {bench.config.batch_size}",
        "alternative_is": "a loop over images with scikit-image's structural_similarity and peak_signal_noise_ratio",
    }
    tokenizer = Unrelated()
    return bench.measure(
        harness_contest(bench, "harness_ssim_psnr", tokenizer, images, metrics, scikit_image_measures, notes)
    )


def harness_contest(
    bench: Bench,
    name: str,
    tokenizer: ImageTokenizer,
    images: EvalImages,
    metrics: list[Metric],
    measures: Callable[[Tensor, Tensor], dict[str, float]],
    notes: dict[str, str],
) -> Contest:
    """`evaluate`, against a loop over single images that calls the tokenizer and `measures`."""

    def ours() -> dict[str, list[float]]:
        done = evaluate(
            tokenizer, images, metrics, batch_size=bench.config.batch_size, device=bench.device, progress=False
        )
        return {metric.name: [entry[metric.name] for entry in done.per_image] for metric in metrics}

    def theirs() -> dict[str, list[float]]:
        table: dict[str, list[float]] = {}
        for batch in images.batches(1):
            batch = batch._replace(references=batch.references.to(bench.device))
            output, _, _ = reconstruct(tokenizer, batch, torch.Generator().manual_seed(0))
            for metric, value in measures(batch.references[0], output[0]).items():
                table.setdefault(metric, []).append(value)
        return table

    return Contest(
        name=name,
        unit="images/s",
        ours=ours,
        alternative=theirs,
        amount=len(images),
        difference=lambda left, right: relative_difference(left, right, metrics),
        notes={**notes, "difference_is": "largest relative difference of a measure's mean", "n": len(images)},
    )


def relative_difference(left: dict[str, list[float]], right: dict[str, list[float]], metrics: list[Metric]) -> float:
    """The largest relative difference of a measure's mean."""
    means = [(sum(left[metric.name]), sum(right[metric.name])) for metric in metrics]
    return max(abs(ours - theirs) / max(abs(theirs), 1e-9) for ours, theirs in means)


MEMORY_CODE = """
import sys
import numpy as np
from PIL import Image
from hybrid_tokenizer.evaluation.controls import LosslessGuide, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate
from hybrid_tokenizer.evaluation.measures import Metric
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.provenance import peak_memory_bytes
count = int(sys.argv[1])
read = lambda name: Image.fromarray(np.random.default_rng(int(name)).integers(0, 256, (96, 96, 3), dtype=np.uint8))
images = EvalImages([str(i) for i in range(count)], read, 96, progress=False)
evaluate(LosslessGuide(24), images, [Metric("psnr", pixel.psnr), Metric("ssim", pixel.ssim)], progress=False)
print(); print(peak_memory_bytes())
"""


def harness_memory(bench: Bench) -> dict[str, Any]:
    """Peak memory of `evaluate` on four times as many images, each in a fresh interpreter."""
    counts = FEWER_IMAGES if bench.config.reduced else MEMORY_IMAGES
    few, many = (peak_memory(count) for count in counts)
    return {
        "name": "harness_memory", "ours": many, "alternative": few, "unit": "bytes", "ratio": few / many,
        "max_output_difference": None, "difference_is": "no output",
        "ours_is": f"peak memory of evaluate on {counts[1]:,} images",
        "alternative_is": f"the same on {counts[0]:,} images",
    }  # fmt: skip


def peak_memory(count: int) -> int:
    """Bytes that a fresh interpreter takes for `evaluate` on so many images."""
    return json.loads(run_fresh(MEMORY_CODE, str(count)))


def run_fresh(code: str, *arguments: str) -> str:
    """The last word that a fresh interpreter prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def import_time(bench: Bench) -> dict[str, Any]:
    """The import of the package, once torch is loaded."""
    contest = Contest(
        name="import",
        unit="s",
        ours=lambda: Timed(seconds_after_torch("import hybrid_tokenizer"), None),
        alternative=lambda: Timed(seconds_after_torch(PLAIN_IMPORTS), None),
        amount=0,
        difference=lambda left, right: None,
        notes={
            "ours_is": "import hybrid_tokenizer, in a fresh interpreter that has torch already",
            "alternative_is": f"what the plain code imports: {PLAIN_IMPORTS}",
            "difference_is": "no output",
        },
    )
    return bench.measure(contest) | {"import_of_HybridTokenizer": seconds_after_torch("from hybrid_tokenizer import HybridTokenizer")}  # fmt: skip


def seconds_after_torch(statement: str) -> float:
    """The time of a statement in a fresh interpreter that has loaded torch."""
    code = f"import time, torch\nstart = time.perf_counter()\n{statement}\nprint('\\n', time.perf_counter() - start, sep='')"
    return float(run_fresh(code))


def startup(bench: Bench) -> dict[str, Any]:
    """Start a fresh interpreter and load a tokenizer; also the peak of its memory."""
    with tempfile.TemporaryDirectory() as folder:
        bench.tokenizer.save_pretrained(Path(folder) / "tokenizer")
        home = str(Path(folder) / "tokenizer")
        peak = "; from hybrid_tokenizer.provenance import peak_memory_bytes; print(); print(peak_memory_bytes())"
        ours_code = f"from hybrid_tokenizer import HybridTokenizer; HybridTokenizer.from_pretrained({home!r})" + peak
        vae_class = bench.tokenizer.diffusion.config.vae_class
        # the embedded preset's VAE is no class of diffusers: the plain code reads its weights
        vae = (
            f"load_file({home + '/diffusion/vae/diffusion_pytorch_model.safetensors'!r})"
            if vae_class == "AutoencoderTinyLinear"
            else f"diffusers.{vae_class}.from_pretrained({home + '/diffusion/vae'!r})"
        )
        plain_code = (
            f"import diffusers; {PLAIN_IMPORTS}; from safetensors.torch import load_file; {vae}; "
            f"UNet2DConditionModel.from_pretrained({home + '/diffusion/unet'!r}); "
            f"load_file({home + '/guide/model.safetensors'!r}); load_file({home + '/semantic/model.safetensors'!r})"
        ) + peak
        peaks: list[int] = []
        contest = Contest(
            name="startup",
            unit="s",
            ours=lambda: peaks.append(json.loads(run_fresh(ours_code))),
            alternative=lambda: json.loads(run_fresh(plain_code)),
            amount=0,
            difference=lambda left, right: None,
            notes={
                "ours_is": "a fresh interpreter up to HybridTokenizer.from_pretrained",
                "alternative_is": "a fresh interpreter up to diffusers' models loaded and the other weights read",
                "difference_is": "no output",
            },
        )
        return bench.measure(contest) | {"peak_memory_bytes": max(peaks)}
