"""A server in a process of its own, that tests may kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
