"""Small runs of train_lm: options, and processes that run the command."""

import contextlib
import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from helpers.commands import environment, run_command

SMALL_LM = (
    "lm.width=16", "lm.layers=2", "lm.heads=2", "lm.mlp_width=32", "lm.embedding_width=8", "lm.text_vocab_size=300",
    "lm.max_length=128", "row_length=128", "pictures=0", "data.val_share=0.2", "training.batch_size=4",
    "training.num_workers=0", "training.tracker=none", "training.progress=false", "training.num_threads=1",
    "training.learning_rate=0.01", "training.min_learning_rate=0.01", "training.warmup_steps=0",
    "training.mixed_precision=no",
)  # fmt: skip
RANK_PROGRAM = Path(__file__).with_name("lm_rank.py")
KILLED_PROGRAM = Path(__file__).with_name("lm_killed.py")


def reset_accelerate():
    """Accelerate keeps one state per process; every run of a test must start as in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train_lm(*arguments):
    """Run train_lm to its end in this process; its lines on start and end."""
    threads = torch.get_num_threads()
    reset_accelerate()
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        error = run_command("train_lm", *SMALL_LM, *arguments)
    reset_accelerate()
    torch.set_num_threads(threads)
    assert error is None, error
    return [line for line in stdout.getvalue().splitlines() if not line.startswith(("step ", "the weights "))]


def refused(*arguments):
    """The one line with which train_lm ends."""
    reset_accelerate()
    error = run_command("train_lm", *SMALL_LM, *arguments)
    reset_accelerate()
    return error


def start_ranks(jobs):
    """Two processes that run each job, a dict of `options` and of `environment` changes, one after the other."""
    ports = []
    for _ in jobs:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            [sys.executable, str(RANK_PROGRAM), json.dumps(jobs), json.dumps(ports)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip


def finish_ranks(processes):
    """Wait for them; their outputs."""
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return outputs


def kill_at(step, *arguments):
    """A train_lm process that ends by SIGKILL in the middle of a step; its exit code."""
    command = [sys.executable, str(KILLED_PROGRAM), str(step), *SMALL_LM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment(), timeout=300, check=False).returncode
