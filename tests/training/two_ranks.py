"""In this rank: run scripts/train_guide.py for each quantizer kind, and write down which images each step saw.

two_ranks.py LOG KINDS ARGUMENTS...; {kind} in an argument becomes the kind.
"""

import hashlib
import json
import os
import runpy
import sys
from pathlib import Path

from training_runs import reset_accelerate

from hybrid_tokenizer.training.guide import GuideObjective

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_guide.py"
_, log, kinds, *arguments = sys.argv
seen: dict[int, list[str]] = {}
forward = GuideObjective.forward


def logged(self, batch, step):
    seen.setdefault(step, []).extend(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch["images"])
    return forward(self, batch, step)


GuideObjective.forward = logged
for kind in kinds.split(","):
    seen.clear()
    sys.argv = [str(SCRIPT), f"guide.quantizer.kind={kind}", *(text.format(kind=kind) for text in arguments)]
    runpy.run_path(str(SCRIPT), run_name="__main__")
    Path(f"{log}.{kind}.{os.environ['RANK']}.json").write_text(json.dumps(seen))
    reset_accelerate()
