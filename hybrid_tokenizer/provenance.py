"""Where a number came from: revision, versions, machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "pytorch-msssim",
    "vector-quantize-pytorch",
)


def git_revision() -> str | None:
    """The checkout's commit, with `+changes` when tracked files differ; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None or git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def versions() -> dict[str, str | None]:
    """Versions of the packages that can change a number."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, accelerator."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": name, "cores": os.cpu_count(), "gpus": gpus, "platform": platform.platform()}


def provenance() -> dict[str, Any]:
    """All of the above."""
    return {"revision": git_revision(), "versions": versions(), "machine": machine()}
