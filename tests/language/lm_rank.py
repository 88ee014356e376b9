"""In this rank: run train_lm for each job, each with a process group of its own. lm_rank.py JOBS PORTS (both JSON)."""

import json
import os
import sys

import torch.distributed as dist
from helpers.commands import run_command
from lm_runs import SMALL_LM, reset_accelerate

for job, port in zip(json.loads(sys.argv[1]), json.loads(sys.argv[2]), strict=True):
    os.environ.update(job["environment"] | {"MASTER_PORT": str(port)})
    error = run_command("train_lm", *SMALL_LM, *job["options"])
    if error is not None:
        sys.exit(f"rank {os.environ['RANK']}: {error}")
    if dist.is_initialized():  # not after a run to its end
        dist.destroy_process_group()
    reset_accelerate()
    for name in job["environment"]:
        del os.environ[name]
