"""Sections of the GPU check that train: a killed run resumed, every stage for some steps, and two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.data import open_rgb, sample_photographs
from hybrid_tokenizer.data.folders import find_images
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.gpu.config import GpuCheckConfig
from hybrid_tokenizer.verification.gpu.rows import Row, at_most

CLI = "hybrid_tokenizer.commands.cli"
TRAINING_PICTURES = 48
POLL_SECONDS = 0.05
NARROW_GUIDE = (
    "guide.image_size=32", "guide.norm_num_groups=4", "guide.encoder_channels=[8,8,8]", "guide.decoder_channels=[8,8,8]",
    "guide.quantizer.codebook_size=32", "data.image_size=32",
)  # fmt: skip
NARROW_SEMANTIC = (
    "semantic.image_size=32", "semantic.patch_size=16", "semantic.vision_width=16", "semantic.vision_layers=1",
    "semantic.vision_heads=2", "semantic.vision_mlp_width=16", "semantic.width=16", "semantic.num_queries=4",
    "semantic.qformer_layers=1", "semantic.qformer_heads=2", "semantic.qformer_mlp_width=16", "semantic.decoder_layers=1",
    "semantic.decoder_heads=2", "semantic.decoder_mlp_width=16", "semantic.reverse_layers=1",
    "semantic.quantizer.codebook_size=16", "semantic.quantizer.codebook_dim=4", "data.image_size=32",
)  # fmt: skip
NARROW_DIFFUSION = (
    "diffusion.unet.block_out_channels=[32,32,32]", "diffusion.vae.block_out_channels=[8,8,8,8]",
    "diffusion.vae.decoder_channels=8", "data.image_size=32",
)  # fmt: skip
STAGES = """
import json, sys, time
import torch
from hybrid_tokenizer.commands.cli import run
from hybrid_tokenizer.verification.gpu.syncs import counted_syncs
device, jobs = sys.argv[1:]  # run() writes its own
for name, arguments in json.loads(jobs):
    start = time.perf_counter()
    with counted_syncs(torch.device(device)) as places:
        run(name, arguments)
    print("STAGE", json.dumps({"seconds": time.perf_counter() - start, "waits": places}), flush=True)
"""


def pairs(config: GpuCheckConfig, folder: Path) -> Path:
    """Some pictures, copied at up to 320 px, with their names as captions."""
    if config.pictures is None:
        pictures = list(sample_photographs().items())
    else:
        paths = find_images(Path(config.pictures))[:TRAINING_PICTURES]
        pictures = [(path.stem, open_rgb(path)) for path in paths]
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, picture) in enumerate(pictures):
        picture.thumbnail((320, 320))
        picture.save(folder / f"{number:03d}.png")
        lines.append(json.dumps({"file": f"{number:03d}.png", "captions": [f"a picture called {name}"]}))
    write_atomic(folder / "captions.jsonl", "\n".join(lines).encode())
    return folder


def common(config: GpuCheckConfig, steps: int) -> list[str]:
    """Options of every training run of the check."""
    options = [
        f"training.max_steps={steps}", "training.warmup_steps=0", "training.num_workers=0", "training.tracker=none",
        "training.progress=false", "training.batch_size=4", "data.val_at_least=2",
    ]  # fmt: skip
    return [*options, "training.num_threads=1"] if config.reduced else options


def environment(device: str) -> dict[str, str]:
    """Of a child process. A CPU device hides the GPUs from it."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, **hidden, "GLOO_SOCKET_IFNAME": "lo"}


def train_guide_command(config: GpuCheckConfig, root: Path, output: Path, *extra: str) -> list[str]:
    """The arguments behind `python` of a run of train-guide."""
    steps = config.sizes.steps
    narrow = NARROW_GUIDE if config.reduced else ()
    options = [*common(config, steps), f"training.save_every={steps // 4}", f"data.root={root}", f"output_dir={output}"]
    return ["-m", CLI, "train-guide", *narrow, *options, *extra]


def resume(config: GpuCheckConfig, scratch: Path) -> Iterator[Row]:
    """train-guide, killed after its first checkpoint and resumed, against a run that was never stopped."""
    root = pairs(config, scratch / "pairs")
    start = time.perf_counter()
    _finish([sys.executable, *train_guide_command(config, root, scratch / "unbroken")], config)
    yield Row("an unbroken run", time.perf_counter() - start, "s")
    command = [sys.executable, *train_guide_command(config, root, scratch / "killed")]
    child = subprocess.Popen(command, env=environment(config.device))
    checkpoints = scratch / "killed" / "checkpoints"
    while child.poll() is None and not any(checkpoints.glob("step-*")):
        time.sleep(POLL_SECONDS)
    child.send_signal(signal.SIGKILL)
    killed = child.wait() == -signal.SIGKILL
    yield Row("the first start was killed", "yes" if killed else "no", "", "yes", killed)
    _finish(command, config)
    first, second = (load_file(scratch / name / "final" / "model.safetensors") for name in ("unbroken", "killed"))
    difference = max((first[name].double() - second[name].double()).abs().max().item() for name in first)
    # sums with atomic additions differ from run to run on a GPU
    yield at_most("largest difference of a weight after resuming", difference, 0 if config.device == "cpu" else 1e-2, "")  # fmt: skip


def stages(config: GpuCheckConfig, scratch: Path) -> Iterator[Row]:
    """Some steps of each training stage."""
    root = pairs(config, scratch / "pairs")
    given = [*common(config, config.sizes.stage_steps), f"data.root={root}"]
    narrow_guide, semantic, diffusion = (
        (NARROW_GUIDE, NARROW_SEMANTIC, NARROW_DIFFUSION) if config.reduced else ((), (), ())
    )
    guide, stage1, stage2, vae, unet = (scratch / n for n in ("guide", "contrastive", "quantize", "vae", "unet"))
    commands = {
        "guide": ("train-guide", [*narrow_guide, "guide.quantizer.kind=ema", f"output_dir={guide}"]),
        "contrastive": ("train-semantic", [*semantic, "stage=contrastive", f"output_dir={stage1}"]),
        "quantize": ("train-semantic", [*semantic, "stage=quantize", f"semantic.init={stage1 / 'final'}", f"output_dir={stage2}"]),
        "vae": ("pretrain-diffusion", [*diffusion, "stage=vae", "data.resident_mb=500", f"output_dir={vae}"]),
        "unet": ("pretrain-diffusion", [*diffusion, "stage=unet", "unet.views=1", f"diffusion.init={vae / 'final'}", f"output_dir={unet}"]),
    }  # fmt: skip
    jobs = json.dumps([(name, [*given, *options]) for name, options in commands.values()])
    said = _finish([sys.executable, "-c", STAGES, config.device, jobs], config)
    measured = [json.loads(line.removeprefix("STAGE ")) for line in said.splitlines() if line.startswith("STAGE ")]
    for name, stage in zip(commands, measured, strict=True):
        final = scratch / name / "final"
        tensors = [load_file(path) for path in final.rglob("*.safetensors")]
        finite = all(value.isfinite().all() for tensor in tensors for value in tensor.values())
        taken, waits = stage["seconds"], stage["waits"]
        yield Row(f"{name}: {config.sizes.stage_steps} step(s)", taken, "s", "finite weights", bool(tensors) and finite)
        yield at_most(f"{name}: times that steps wait for the device", len(waits), 0, " ".join(sorted(set(waits))))


def two_processes(config: GpuCheckConfig, scratch: Path) -> Iterator[Row]:
    """train-guide on two processes: NCCL where there are two GPUs, gloo on the CPU otherwise."""
    two_gpus = config.device == "cuda" and torch.cuda.device_count() >= 2
    device = "cuda" if two_gpus else "cpu"
    root = pairs(config, scratch / "pairs")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    start = time.perf_counter()
    extra = () if two_gpus else ("training.mixed_precision=no",)
    _finish([*launcher, *train_guide_command(config, root, scratch / "two", *extra)], config, device)
    facts = json.loads((scratch / "two" / "final" / "training.json").read_text())
    hashes = facts["weights_sha256_by_rank"]
    yield Row("backend", "nccl" if two_gpus else "gloo")
    yield Row("a run", time.perf_counter() - start, "s")
    yield Row("processes", facts["processes"], "", "2", facts["processes"] == 2)
    yield Row("different weights", len(set(hashes)), "", "1", len(set(hashes)) == 1)


def _finish(command: Sequence[str], config: GpuCheckConfig, device: str | None = None) -> str:
    """Run a child to its end and return what it printed. Raises with its last line if it fails."""
    done = subprocess.run(command, env=environment(device or config.device), stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        raise HybridTokenizerError(f"a child process ended with exit code {done.returncode}; its output is above")
    return done.stdout
