"""Run the commands as a user does: through `scripts/`, in this process or in others."""

import functools
import json
import os
import runpy
import sys
from pathlib import Path

import pytest

from hybrid_tokenizer.commands.config import compose

ROOT = Path(__file__).resolve().parents[2]


def command_line(name, *arguments):
    """What stands behind `python`: the script and its arguments."""
    return [str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]


def environment():
    """For a command in another process."""
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    return os.environ | threads | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def run_command(name, *arguments):
    """Run the command in this process. Returns its exit message, None on success."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command_line(name, *arguments))
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as leaving:
            return leaving.code
    return None


def run_tool(name, *arguments):
    """Run a maintainer's tool in this process. Returns its exit message, None on success."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / "tools" / name), *map(str, arguments)])
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as leaving:
            return leaving.code
    return None


def without_times(path):
    """The rows of a report, the seconds taken out."""
    rows = json.loads(Path(path).read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "seconds_per_image"} for row in rows]


@functools.cache
def composed(config, *groups):
    """The configuration of a command under choices of whole groups such as `study=figures`. Composing takes a third of a second;
    not to be changed."""
    return compose(config, list(groups))
