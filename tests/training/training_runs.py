"""Small training runs: pictures, options, and scripts run in this process or in one of their own."""

import os
import runpy
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SMALL_GUIDE = (
    "guide.image_size=32", "guide.norm_num_groups=4", "guide.encoder_channels=[8,8,8]", "guide.decoder_channels=[8,8,8]",
    "guide.quantizer.codebook_size=32", "data.image_size=32", "data.val_at_least=4", "training.batch_size=2",
    "training.warmup_steps=0", "training.learning_rate=0.01", "training.num_workers=0", "training.tracker=none",
    "training.progress=false", "training.num_threads=1",
)  # fmt: skip
"""A learning rate at which 6 steps move every weight far beyond rounding."""

SHARD_ROWS = 8
"""Rows of a cache's shard, so that a handful of pictures fill several."""


def picture(seed, height=36, width=40):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_pictures(folder, count=12):
    """Nested, and of several sizes."""
    for index in range(count):
        path = folder / f"n{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(index, height=36 + index).save(path)
    return folder


def reset_accelerate():
    """Accelerate keeps one state per process; every run of a test must start as in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def command(script, *arguments):
    return [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]


def environment(**changes):
    return os.environ | {"PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "0", "OMP_NUM_THREADS": "1"} | changes


def run_script(name, *arguments):
    """Run a script as `python scripts/NAME ARGUMENTS` would, in this process. Returns its exit message, None on success."""
    threads = torch.get_num_threads()
    reset_accelerate()
    torch.set_num_threads(1)  # whatever the environment gave
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command(name, *arguments)[1:])
            patch.setenv("HYDRA_FULL_ERROR", "0")
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        return leaving.code
    finally:
        reset_accelerate()
        torch.set_num_threads(threads)


@pytest.fixture
def script(capfd):
    """`run_script` that returns (error, stdout, stderr)."""
    return lambda name, *arguments: (run_script(name, *arguments), *capfd.readouterr())


def final_weights(folder):
    return (folder / "final" / "model.safetensors").read_bytes()


def assert_same_gradients(one, two):
    """Equal up to rounding. A tensor may differ by 1e-4 of its own size and by 1e-5 of the largest gradient: where terms cancel,
    as for a bias before a norm, only rounding is left."""
    assert set(one) == set(two) and len(one) > 20
    rounding = 1e-5 * max(gradient.abs().max().item() for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=rounding, msg=name)


def said(stdout):
    """The lines on a run's start and end, without validation, skipped files and what to do next."""
    return [line for line in stdout.splitlines() if not line.startswith(("step ", "skipped ", "the weights are in "))]
