"""In this rank of a torchrun: run scripts one after the other, each with a process group of its own. two_ranks.py JOBS LOGS

JOBS is JSON: for each job its name, script, arguments, changes of the environment and a free port. LOGS/NAME.RANK.json then
says which images each step of the guide's training saw, and which items were read for the cache of latents.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from training_runs import SHARD_ROWS, reset_accelerate, run_script

from hybrid_tokenizer.training import crop_cache
from hybrid_tokenizer.training.guide import GuideObjective

seen: dict[int, list[str]] = {}
read: list[int] = []
forward, read_crops = GuideObjective.forward, crop_cache.CropSource.read


def logged_forward(self, batch, step):
    seen.setdefault(step, []).extend(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch["images"])
    return forward(self, batch, step)


def logged_read(self, number):
    read.append(number)
    return read_crops(self, number)


GuideObjective.forward, crop_cache.CropSource.read = logged_forward, logged_read
crop_cache.ROWS_OF_SHARD = SHARD_ROWS
# the launcher's store holds the addresses of one process group only
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for job in json.loads(sys.argv[1]):
    seen.clear()
    read.clear()
    os.environ.update(job["environment"] | {"MASTER_PORT": str(job["port"])})
    error = run_script(job["script"], *job["arguments"])
    if error is not None:
        sys.exit(f"rank {os.environ['RANK']}: {error}")
    if dist.is_initialized():  # not after a run to its end
        dist.destroy_process_group()
    reset_accelerate()
    for name in job["environment"]:
        del os.environ[name]
    log = Path(sys.argv[2]) / f"{job['name']}.{os.environ['RANK']}.json"
    log.write_text(json.dumps({"seen": seen, "read": read}))
