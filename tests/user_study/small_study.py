"""A study of noise pictures, ready to be served, made without any tokenizer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hybrid_tokenizer.user_study.study import IMAGES_NAME, Study, StudySet, picture_path, write_study

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("seed", "lavit", "hybrid")


def write_small_study(folder: Path, num_sets: int = 3, study_id: str = "5eed", open_to_all: bool = True) -> Study:
    """Methods of the paper's table; names of pictures are opaque, as `prepare` makes them."""
    (folder / IMAGES_NAME).mkdir(parents=True)
    draws = np.random.default_rng(0)

    def picture() -> str:
        name = draws.bytes(8).hex()
        levels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((64, 64)).save(picture_path(folder, name))
        return name

    sets = tuple(
        StudySet(f"{number:04x}", f"{number}.jpg", picture(), {method: picture() for method in METHODS})
        for number in range(num_sets)
    )
    study = Study(study_id, "secret", "link-token", METHODS, sets, open_to_all)
    write_study(folder, study, {})
    return study


class RunningServer:
    """A script that serves, in a process of its own. `link` is what it printed."""

    def __init__(self, *arguments: str | Path, port: int = 0):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, *map(str, arguments), "--port", str(port)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if line.startswith("listening on "):
                self.link = line.removeprefix("listening on ").strip()
                return
        raise AssertionError(f"{command} ended with {self.process.wait()} before it listened")

    @property
    def port(self) -> int:
        return int(self.link.rsplit(":", 1)[1].split("/")[0])

    def kill(self) -> None:
        """SIGKILL: no handler runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
