"""What a run tells TensorBoard or Weights & Biases: its configuration, scalars and pictures, under one name and id.

TensorBoard's own writer puts time and host name into the names of its files; here they are reproducible.
"""

import io
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from accelerate.tracking import GeneralTracker, on_main_process
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.errors import HybridTokenizerError, first_line

ID_NAME = "run_id.txt"


def run_id(folder: Path) -> str:
    """The id of the run in `folder`, drawn at its first start, so that a resumed run continues the same one."""
    path = folder / ID_NAME
    if not path.exists():
        write_atomic(path, secrets.token_hex(6).encode())
    return path.read_text().strip()


def wandb_options(folder: Path, mode: str, name: str | None) -> dict[str, Any]:
    """What `wandb.init` takes for the run in `folder`. The name is the folder's where none is given."""
    name = name or folder.resolve().name
    return {"mode": mode, "dir": str(folder), "name": name, "id": run_id(folder), "resume": "allow"}


@contextmanager
def wandb_errors() -> Iterator[None]:
    """Around the start of a tracker: what Weights & Biases refuses is one line."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("wandb."):
            raise
        raise HybridTokenizerError(
            f"training.tracker=wandb cannot start ({first_line(error)}); set WANDB_API_KEY, or give "
            "training.wandb_mode=offline or training.tracker=tensorboard"
        ) from None


def log_pictures(trackers: list[GeneralTracker], picture: UInt8[Tensor, "3 h w"], step: int) -> None:
    """Show a grid of validation pictures in every tracker."""
    for tracker in trackers:
        tracker.log_images({"validation": [picture.permute(1, 2, 0).numpy()]}, step=step)


class TensorBoardEvents(GeneralTracker):
    """Writes scalars, pictures and the configuration to `folder`/events.out.tfevents.from-step-N, one file per start of the run.

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
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Show the configuration on the page for texts, as YAML."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        plain = json.loads(json.dumps(dict(values), default=str))
        lines = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).splitlines()
        text = "\n".join(f"    {line}" for line in lines)  # indented: Markdown's form of text as it stands
        metadata = create_summary_metadata(display_name="configuration", description="")
        value = Summary.Value(tag="configuration", metadata=metadata, tensor=make_tensor_proto([text.encode()]))
        self._write(Event(summary=Summary(value=[value]), step=self.from_step))
        self.writer.flush()

    @on_main_process
    def log_images(self, values: Mapping[str, list[Any]], step: int | None = None) -> None:
        """Show pictures, given as arrays of uint8 (h w 3). Each list is one tag."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = []
        for name, pictures in values.items():
            for number, picture in enumerate(pictures):
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, "PNG")
                height, width = picture.shape[:2]
                image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
                shown.append(Summary.Value(tag=f"{name}/{number}", image=image))
        self._write(Event(summary=Summary(value=shown), step=step))
        self.writer.flush()

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
