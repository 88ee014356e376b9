"""Checkpoints and log of a run. A checkpoint is a folder of plain tensors and numbers that is written atomically."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import (
    file_hash,
    load_tensors,
    read_json,
    save_tensors,
    write_atomic,
    write_json,
)
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, printable, shown
from hybrid_tokenizer.training.sharding import spread_as

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
FIELDS = {"step": int, "seconds": float, "sha256": dict, "geometry": dict, "settings": dict, "changes": list}
"""Of state.json, with their types."""
LATER_FIELDS = ("settings", "changes")
"""Those that version 0.2.0 did not write."""
FOLDERS = ("checkpoints", "validation", "final", "cache", "tensorboard")
TEMPORARY = re.compile(r"\..+\.\d+\.tmp|\.tmp[A-Za-z0-9]{6}")
"""Names under which this package and safetensors write before they rename."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around writes to a run's folder: a failure is one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError):
            reason, where = error.strerror or first_line(error), error.filename or folder
        else:  # its text holds the system's
            reason, where = re.sub(r".*I/O error: | \(os error.*", "", first_line(error)), folder
        raise HybridTokenizerError(
            f"{printable(str(where))} cannot be written ({reason}); the checkpoints that are there are whole: mend this, and the "
            "same command goes on from the newest"
        ) from None


def prepare_folder(folder: Path) -> None:
    """Check what a run will write to before it computes anything, and remove what a killed run was writing."""
    with writing(folder):
        for name in FOLDERS:
            if (folder / name).exists() and not (folder / name).is_dir():
                raise HybridTokenizerError(
                    f"{printable(folder / name)} is a file, and this run needs a folder of that name; move the file, or give "
                    "another output_dir"
                )
            for path in sorted((folder / name).rglob(".*")):
                if TEMPORARY.fullmatch(path.name):
                    _remove(path)
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name):
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # it may have lain in a folder that is gone now


def pack_optimizer(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `PARAMETER/ENTRY`."""
    return {
        f"{names[parameter]}/{entry}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], packed: dict[str, Tensor], source: str
) -> None:
    """Load what `pack_optimizer` gave. Raises when a tensor belongs to no parameter."""
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in packed.items():
        name, entry = key.rsplit("/", 1)
        if name not in by_name:
            raise HybridTokenizerError(
                f"{source} holds optimizer state of {name!r}, which this run does not train; use a new output_dir"
            )
        parameter = by_name[name]
        if entry == "step":
            optimizer.state[parameter][entry] = value.to(parameter.device if optimizer.defaults.get("fused") else "cpu")
        else:  # with the parameter's strides: another order in memory may round differently
            optimizer.state[parameter][entry] = torch.empty_like(parameter).copy_(spread_as(value, parameter))


def save_checkpoint(
    root: Path, step: int, keep: int, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any]
) -> Path:
    """Write `root`/step-N through a temporary folder and a rename, then delete all but the newest `keep` checkpoints.

    Raises:
        HybridTokenizerError: it cannot be written. The earlier checkpoints stay, and nothing of this one.
    """
    final = root / f"step-{step:08d}"
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    with writing(root):
        try:
            temporary.mkdir(parents=True)
            for name, values in tensors.items():
                save_tensors(temporary / name, values)
            hashes = {name: file_hash(temporary / name) for name in tensors}
            write_json(temporary / STATE, {"step": step, "sha256": hashes, **facts})
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if final.exists():  # damaged: otherwise the run would have resumed from it
            _remove(final)
        os.replace(temporary, final)
        _sync_folder(root)
    keep_newest(final, keep)
    return final


def keep_newest(newest: Path, keep: int) -> None:
    """Delete the checkpoints before `newest` so that `keep` are left. What is after it is damaged and stays."""
    with writing(newest.parent):
        earlier = [folder for folder in sorted(newest.parent.glob("step-*")) if folder.name <= newest.name]
        for old in earlier[:-keep]:
            _remove(old)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_checkpoint(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint under `root` and its facts. Reports the damaged ones that it passes over."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            facts = read_json(folder / STATE)
            check_state(facts)
            damaged = [name for name, digest in facts["sha256"].items() if file_hash(folder / name) != digest]
        except (HybridTokenizerError, OSError) as error:
            print(f"passed over damaged checkpoint {folder}: {error}", flush=True)
            continue
        if damaged:
            print(
                f"passed over damaged checkpoint {folder}: {', '.join(damaged)} changed since it was written",
                flush=True,
            )
            continue
        return folder, facts
    return None


def check_state(facts: Any) -> None:
    """Raise where a state.json lacks a field or holds something else in it."""
    if not isinstance(facts, dict):
        raise HybridTokenizerError(f"{STATE} holds {shown(facts)}, expected an object")
    for name, kind in FIELDS.items():
        if name not in facts:
            if name in LATER_FIELDS:
                continue
            raise HybridTokenizerError(f"{STATE} has no {name!r}")
        if not isinstance(facts[name], kind) or isinstance(facts[name], bool):
            raise HybridTokenizerError(f"{STATE} has {name}={shown(facts[name])}, expected {kind.__name__}")
    if missing := {MODEL, OPTIMIZER} - set(facts["sha256"]):
        raise HybridTokenizerError(f"{STATE} lists no {' and no '.join(sorted(missing))}")


def load_checkpoint_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file name."""
    return {path.name: load_tensors(path) for path in sorted(folder.glob("*.safetensors"))}


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a log. If a kill cuts it off, `trim_jsonl` removes it on resuming."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def trim_jsonl(path: Path, last_step: int) -> None:
    """Remove the rows after `last_step` and a half-written row, so that a resumed log equals that of an unbroken run."""
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in _rows(path) if row["step"] <= last_step]
        write_atomic(path, "".join(kept).encode())


def is_validated(path: Path, step: int) -> bool:
    """Whether a log has the row of a step's validation."""
    return any(row["step"] == step and any(name.startswith("val_") for name in row) for row in _rows(path))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue
