"""Writes TensorBoard files with reproducible names. TensorBoard's own writer puts time and host name into them."""

import time
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process


class TensorBoardEvents(GeneralTracker):
    """Writes scalars to `folder`/events.out.tfevents.from-step-N, one file per start of the run.

    The file of a resumed run hides the steps of earlier files that it repeats.
    """

    name = "tensorboard"
    requires_logging_directory = False

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.from_step = folder, 0

    @property
    def tracker(self) -> Any:
        """tensorboard's RecordWriter."""
        return self.writer

    @on_main_process
    def start(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"events.out.tfevents.from-step-{self.from_step:08d}"
        self.writer = RecordWriter(open(path, "wb"))  # noqa: SIM115  finish() closes it
        self._write(Event(file_version="brain.Event:2"))
        self._write(
            Event(session_log=SessionLog(status=SessionLog.START), step=self.from_step + 1)
        )  # TensorBoard hides later steps of earlier files

    @on_main_process
    def log(self, values: dict[str, float], step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(summary=Summary(value=scalars), step=step))
        self.writer.flush()

    @on_main_process
    def finish(self) -> None:
        self.writer.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self.writer.write(event.SerializeToString())
