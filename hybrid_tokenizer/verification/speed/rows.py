"""The rows of the benchmark: each builds its two sides once and measures them."""

import contextlib
import copy
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hybrid_tokenizer.data import TrainingStream, find_images, sample_photographs
from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.evaluation.controls import LosslessGuide, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate, reconstruct
from hybrid_tokenizer.evaluation.measures import Metric, default_metrics
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.perceptual import EfficientNetDistance
from hybrid_tokenizer.presets import list_presets
from hybrid_tokenizer.protocol import ImageTokenizer
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.tokens import HybridTokens
from hybrid_tokenizer.training.config import GuideLossOptions, TrainingConfig
from hybrid_tokenizer.training.guide import GuideObjective
from hybrid_tokenizer.training.loop import choose_precision, train
from hybrid_tokenizer.verification.speed.alternatives import (
    PlainPipeline,
    all_measures,
    scikit_image_measures,
    train_guide_plainly,
)
from hybrid_tokenizer.verification.speed.config import GPU_ROWS, ROWS, BenchmarkConfig
from hybrid_tokenizer.verification.speed.timing import Contest, Timed, measure

ATTAINABLE_FLOPS = {"H100": 800e12, "H200": 800e12}
"""Dense bf16, as far as matrix products reach it; by a part of the device's name."""
SD15_SIZE = 512
PLAIN_START = {"start": "ddim_inversion", "inversion_condition": "generation", "guidance_scale": 1.0}
"""What both sides of the decoding rows do, whatever the preset's defaults are: every step of the inversion asks the U-Net."""
HARNESS_COPIES = 8  # of the built-in photographs
PLAIN_IMPORTS = (
    "from diffusers import AutoencoderKL, DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel; "
    "from transformers import Blip2QFormerModel, Blip2VisionModel"
)


@dataclass
class Bench:
    """What the rows share. Tokenizer and pictures are made when the first row asks for them."""

    config: BenchmarkConfig
    device: torch.device

    @cached_property
    def tokenizer(self) -> HybridTokenizer:
        name = self.config.model_name
        if name == "tiny" and name not in list_presets():  # before its weights exist: speed does not depend on them
            return random_tokenizer("tiny").to(self.device)
        return HybridTokenizer.from_pretrained(name).to(self.device)

    @cached_property
    def plain(self) -> PlainPipeline:
        return PlainPipeline(self.tokenizer)

    @cached_property
    def fast(self) -> HybridTokenizer:
        """The tokenizer as a user who waits for many images would set it up."""
        return copy.deepcopy(self.tokenizer).compile() if self.config.compile else self.tokenizer

    @cached_property
    def eval_images(self) -> EvalImages:
        size, count = self.config.image_size, self.config.batch_size
        return EvalImages.open(self.config.data_root, size, max_images=count, progress=False)

    @cached_property
    def images(self) -> Float[Tensor, "b 3 r r"]:
        """A whole batch; pictures come again, mirrored, where there are too few."""
        pictures = torch.stack([self.eval_images[i] for i in range(len(self.eval_images))])
        while len(pictures) < self.config.batch_size:
            pictures = torch.cat([pictures, pictures.flip(-1)])
        return pictures[: self.config.batch_size].to(self.device)

    def measure(self, contest: Contest) -> dict[str, Any]:
        warm_up = 1 if self.config.compile or self.device.type == "cuda" else 0
        return measure(contest, self.config.repeats, self.device, warm_up)

    def measure_fast(self, contest: Contest) -> dict[str, Any]:
        """Of a contest that `fast` takes part in."""
        return self.measure(contest) | {"compiled": self.config.compile}


def random_tokenizer(preset: str) -> HybridTokenizer:
    """The preset's architecture with random weights."""
    torch.manual_seed(0)
    guide = GuideTokenizer(getattr(GuideConfig, preset)())
    semantic = SemanticTokenizer(SemanticConfig.tiny() if preset == "tiny" else SemanticConfig.seed1())
    diffusion = DiffusionDecoder(getattr(DiffusionConfig, preset)())
    diffusion.null_condition.normal_()
    return HybridTokenizer(guide, semantic, diffusion, name=f"{preset} (random weights)")


def run_rows(config: BenchmarkConfig, device: torch.device, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All rows that were asked for, by default all that the device can run."""
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


def encode(bench: Bench) -> dict[str, Any]:
    return bench.measure_fast(encode_contest(bench.fast, bench.plain, bench.images, "encode"))


def encode_contest(
    tokenizer: HybridTokenizer, plain: PlainPipeline, images: Float[Tensor, "b 3 r r"], name: str
) -> Contest:
    """A batch in one call, against one image at a time. Outputs are compared as the share of tokens that differ."""
    _ = tokenizer.hash  # taken once in a tokenizer's life

    def differing(ours: HybridTokens, theirs: list[Any]) -> float:
        pairs = [(ours.semantic_indices, torch.cat([semantic for semantic, _ in theirs]))]
        for scale, grid in enumerate(ours.guide_indices):
            pairs.append((grid, torch.cat([grids[scale] for _, grids in theirs])))
        return share_of_differing(pairs)

    return Contest(
        name=name,
        unit="images/s",
        ours=lambda: tokenizer.encode(images, search_steps=0),
        alternative=lambda: [plain.encode_one(image) for image in images.split(1)],
        amount=len(images),
        difference=differing,
        notes={
            "ours_is": f"HybridTokenizer.encode without search, batch {len(images)}",
            "alternative_is": "transformers' BLIP-2 classes, diffusers' Encoder and torch.cdist by hand, one image at a time",
            "difference_is": "share of tokens that differ",
            "batch_size": len(images),
            "model": tokenizer.name,
        },
    )


def encode_search(bench: Bench) -> dict[str, Any]:
    """What the search for better guide codes costs."""
    tokenizer, images = bench.tokenizer, bench.images

    contest = Contest(
        name="encode_search",
        unit="images/s",
        ours=lambda: tokenizer.encode(images),
        alternative=lambda: tokenizer.encode(images, search_steps=0),
        amount=len(images),
        difference=lambda ours, theirs: share_of_differing(
            list(zip(ours.guide_indices, theirs.guide_indices, strict=True))
        ),
        notes={
            "ours_is": f"HybridTokenizer.encode with its own {tokenizer.search_steps} steps of search, batch {len(images)}",
            "alternative_is": "the same without search",
            "difference_is": "share of guide tokens that differ",
            "batch_size": len(images),
            "model": tokenizer.name,
        },
    )
    return bench.measure(contest)


def share_of_differing(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Of the tokens in pairs of grids."""
    wrong = sum((left.cpu() != right.cpu()).sum().item() for left, right in pairs)
    return wrong / sum(left.numel() for left, _ in pairs)


def decode(bench: Bench) -> dict[str, Any]:
    return bench.measure_fast(decode_contest(bench, bench.fast, bench.plain, bench.images, "decode"))


def decode_latency(bench: Bench) -> dict[str, Any]:
    return bench.measure_fast(decode_contest(bench, bench.fast, bench.plain, bench.images[:1], "decode_latency"))


def decode_bf16(bench: Bench) -> dict[str, Any]:
    """U-Net and VAE in bf16, latents and tokens in fp32, against the plain code in fp32: faster, and another image within
    the difference that the row gives."""
    tokenizer = copy.deepcopy(bench.tokenizer)
    tokenizer.diffusion.to(dtype=torch.bfloat16)
    if bench.config.compile:
        tokenizer.compile()
    contest = decode_contest(bench, tokenizer, bench.plain, bench.images, "decode_bf16")
    contest.notes["ours_is"] += ", U-Net and VAE in bf16"
    contest.notes["alternative_is"] += ", in fp32"
    return bench.measure_fast(contest)


def decode_contest(
    bench: Bench, tokenizer: HybridTokenizer, plain: PlainPipeline, images: Float[Tensor, "b 3 r r"], name: str,
    size: tuple[int, int] | None = None,
) -> Contest:  # fmt: skip
    """Tokens to images by DDIM inversion without guidance; one image alone is measured in seconds."""
    tokens = tokenizer.encode(images, search_steps=0)
    steps, strength = bench.config.num_inference_steps, bench.config.strength
    size = size or tokens.image_size
    single = len(images) == 1

    def ours() -> Tensor:
        return tokenizer.decode(tokens, size, strength=strength, num_inference_steps=steps, **PLAIN_START)

    def theirs() -> Tensor:
        return plain.decode(tokens.semantic_indices, tokens.guide_indices, size, steps, strength)

    return Contest(
        name=name,
        unit="s" if single else "images/s",
        ours=ours,
        alternative=theirs,
        amount=0 if single else len(images),
        difference=largest_difference,
        notes={
            "ours_is": f"HybridTokenizer.decode, batch {len(images)}",
            "alternative_is": "the branches and diffusers' DDIMInverseScheduler and DDIMScheduler driven by hand, same batch",
            "difference_is": "largest difference of a value in [-1, 1]",
            "batch_size": len(images),
            "size": list(size),
            "options": {"num_inference_steps": steps, "strength": strength, **PLAIN_START},
            "model": tokenizer.name,
        },
    )  # fmt: skip


def decode_batch8_vs_1(bench: Bench) -> dict[str, Any]:
    tokenizer = bench.fast
    tokens = tokenizer.encode(bench.images, search_steps=0)
    alone = [tokenizer.encode(image, search_steps=0) for image in bench.images.split(1)]
    options = {
        "strength": bench.config.strength, "num_inference_steps": bench.config.num_inference_steps, **PLAIN_START
    }  # fmt: skip
    contest = Contest(
        name="decode_batch8_vs_1",
        unit="images/s",
        ours=lambda: tokenizer.decode(tokens, **options),
        alternative=lambda: torch.cat([tokenizer.decode(one, **options) for one in alone]),
        amount=len(bench.images),
        difference=largest_difference,
        notes={
            "ours_is": f"HybridTokenizer.decode, batch {len(bench.images)}",
            "alternative_is": "HybridTokenizer.decode, batch 1, the same images one after the other",
            "difference_is": "largest difference of a value in [-1, 1]",
            "batch_size": len(bench.images),
            "model": tokenizer.name,
        },
    )
    return bench.measure_fast(contest)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


class _StampedObjective(GuideObjective):
    """Notes when each step computed its loss, so that start-up and the final save are not counted."""

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        self.stamps.append(time.perf_counter())
        losses = super().forward(batch, step)
        self.losses.append(losses["total"].detach())
        return losses


def train_guide(bench: Bench) -> dict[str, Any]:
    config = TrainingConfig(
        max_steps=bench.config.train_steps, batch_size=bench.config.batch_size, warmup_steps=0, tracker="none",
        progress=False, num_threads=torch.get_num_threads(),
    )  # fmt: skip
    model = copy.deepcopy(bench.tokenizer.guide).train()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "images"
        if bench.config.data_root is None:
            root.mkdir()
            for name, photograph in sample_photographs().items():
                photograph.save(root / f"{name}.png")
        else:
            root = Path(bench.config.data_root)
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
    """All measures of a table, on a tokenizer that takes time itself."""
    size = bench.config.image_size
    metrics = [metric for metric in default_metrics(bench.device) if size >= metric.least_side]
    nets = [EfficientNetDistance(name).to(bench.device) for name in ("lite2", "lite0")]
    measures = partial(all_measures, lite2=nets[0], lite0=nets[1])
    notes = {
        "ours_is": f"evaluate with the table's {len(metrics)} measures and intervals, batch {bench.config.batch_size}",
        "alternative_is": "a loop over images: scikit-image, pytorch-msssim, piq, NumPy, the same feature networks",
    }
    tokenizer = LosslessGuide(size // 4)
    return bench.measure(harness_contest(bench, "harness", tokenizer, bench.eval_images, metrics, measures, notes))


def harness_ssim_psnr(bench: Bench) -> dict[str, Any]:
    """The paper's two measures alone, on a tokenizer that costs nothing."""
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
    """`evaluate` against a loop that takes one image after the other through tokenizer and `measures`."""

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
    """The largest over measures of |mean - mean| / |mean|."""
    means = [(sum(left[metric.name]), sum(right[metric.name])) for metric in metrics]
    return max(abs(ours - theirs) / max(abs(theirs), 1e-9) for ours, theirs in means)


MEMORY_CODE = """
import json, resource, sys
import numpy as np
from PIL import Image
from hybrid_tokenizer.evaluation.controls import LosslessGuide, Unrelated
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate
from hybrid_tokenizer.evaluation.measures import Metric
from hybrid_tokenizer.metrics import pixel
count = int(sys.argv[1])
read = lambda name: Image.fromarray(np.random.default_rng(int(name)).integers(0, 256, (96, 96, 3), dtype=np.uint8))
images = EvalImages([str(i) for i in range(count)], read, 96, progress=False)
evaluate(LosslessGuide(24), images, [Metric("psnr", pixel.psnr), Metric("ssim", pixel.ssim)], progress=False)
print(); print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


def harness_memory(bench: Bench) -> dict[str, Any]:
    """Peak memory of `evaluate` on four times as many images, each in a fresh interpreter."""

    def peak(count: int) -> int:
        command = [sys.executable, "-W", "ignore", "-c", MEMORY_CODE, str(count)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    few, many = peak(1000), peak(4000)
    return {
        "name": "harness_memory", "ours": many, "alternative": few, "unit": "bytes", "ratio": few / many,
        "max_output_difference": None, "difference_is": "no output",
        "ours_is": "peak memory of evaluate on 4,000 images", "alternative_is": "the same on 1,000 images",
    }  # fmt: skip


def import_time(bench: Bench) -> dict[str, Any]:
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
    """What a statement takes in a fresh interpreter once torch is there."""
    code = f"import time, torch\nstart = time.perf_counter()\n{statement}\nprint('\\n', time.perf_counter() - start, sep='')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def startup(bench: Bench) -> dict[str, Any]:
    """From nothing to a tokenizer in memory, in a fresh interpreter, with the peak of its memory."""
    with tempfile.TemporaryDirectory() as folder:
        bench.tokenizer.save_pretrained(Path(folder) / "tokenizer")
        home = str(Path(folder) / "tokenizer")
        peak = "; import json, resource; print(); print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))"
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

        def run(code: str) -> int:
            done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)  # fmt: skip
            return json.loads(done.stdout.split()[-1])

        contest = Contest(
            name="startup",
            unit="s",
            ours=lambda: run(ours_code),
            alternative=lambda: run(plain_code),
            amount=0,
            difference=lambda left, right: None,
            notes={
                "ours_is": "a fresh interpreter up to HybridTokenizer.from_pretrained",
                "alternative_is": "a fresh interpreter up to diffusers' models loaded and the other weights read",
                "difference_is": "no output",
            },
        )
        return bench.measure(contest) | {"peak_memory_bytes": run(ours_code)}


def sd15_row(bench: Bench, name: str) -> dict[str, Any]:
    """The paper's sizes with random weights in bf16, and the limit that the operation count sets on this device."""
    with torch.device(bench.device):
        tokenizer = random_tokenizer("sd15")
    tokenizer.to(bench.device, torch.bfloat16)
    plain = PlainPipeline(tokenizer)
    count = {"sd15_decode_latency": 1, "sd15_decode": 8, "sd15_encode": 32}[name]
    images = bench.images[:1].expand(count, -1, -1, -1).contiguous()
    if name == "sd15_encode":
        contest = encode_contest(tokenizer, plain, images, name)
        flops = count_flops(lambda: tokenizer.encode(images[:1], search_steps=0))
    else:
        size = (SD15_SIZE, SD15_SIZE)
        contest = decode_contest(bench, tokenizer, plain, images, name, size)
        flops = count_flops(decode_contest(bench, tokenizer, plain, images[:1], name, size).ours)
        if bench.config.compile:
            tokenizer.diffusion.compile_unet()
    torch.cuda.reset_peak_memory_stats(bench.device)
    row = bench.measure(contest)
    attainable = next((f for part, f in ATTAINABLE_FLOPS.items() if part in torch.cuda.get_device_name()), None)
    row |= {
        "dtype": "bfloat16",
        "compiled": bench.config.compile and name != "sd15_encode",
        "tflop_per_image": flops / 1e12,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(bench.device),
    }
    if attainable is not None:
        limit = attainable / flops
        rate = row["ours"] if contest.amount else 1 / row["ours"]
        row |= {"limit_images_per_second": limit, "share_of_limit": rate / limit}
    return row


def count_flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


BUILDERS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "encode": encode,
    "encode_search": encode_search,
    "decode": decode,
    "decode_latency": decode_latency,
    "decode_batch8_vs_1": decode_batch8_vs_1,
    "decode_bf16": decode_bf16,
    "train_guide": train_guide,
    "harness": harness,
    "harness_ssim_psnr": harness_ssim_psnr,
    "harness_memory": harness_memory,
    "import": import_time,
    "startup": startup,
    "sd15_encode": lambda bench: sd15_row(bench, "sd15_encode"),
    "sd15_decode": lambda bench: sd15_row(bench, "sd15_decode"),
    "sd15_decode_latency": lambda bench: sd15_row(bench, "sd15_decode_latency"),
}


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the rows, and what each side is."""
    lines = ["| row | ours | alternative | unit | ratio | largest difference |", "|---|---:|---:|---|---:|---:|"]
    for row in rows:
        difference = row["max_output_difference"]
        shown = "–" if difference is None else f"{difference:.2g} ({row['difference_is']})"
        lines.append(
            f"| {row['name']} | {row['ours']:.4g} | {row['alternative']:.4g} | {row['unit']} | {row['ratio']:.2f} | {shown} |"
        )
    lines += ["", *(f"- {row['name']}: {row['ours_is']}; against {row['alternative_is']}." for row in rows)]
    return "\n".join(lines) + "\n"
