"""Run commands, each in a child of this process that ends by SIGKILL when its third row starts: killed_runs.py JOBS.

JOBS is a JSON file of [command, arguments] pairs. Prints how each child ended, as a JSON list of wait statuses.
"""

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import torch
from helpers.commands import run_command

from hybrid_tokenizer.evaluation import loop

started, evaluate = [], loop.evaluate


def deadly(tokenizer, *others, **options):
    if len(started) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    started.append(tokenizer.name)
    return evaluate(tokenizer, *others, **options)


if __name__ == "__main__":
    loop.evaluate = deadly
    torch.set_num_threads(1)
    jobs, statuses = json.loads(Path(sys.argv[1]).read_text()), []
    for name, _ in jobs:
        import_module(f"hybrid_tokenizer.commands.{name}")  # once, and not in every child
    for name, arguments in jobs:
        child = os.fork()
        if not child:
            raise SystemExit(run_command(name, *arguments))
        statuses.append(os.waitpid(child, 0)[1])
    print(json.dumps(statuses))
