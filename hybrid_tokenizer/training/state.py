"""Checkpoints and log of a run. A checkpoint is a folder of plain tensors and numbers that is written atomically."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import file_hash, load_tensors, read_json, save_tensors, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.sharding import spread_as

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"


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
    """Write `root`/step-N through a temporary folder and a rename, then delete all but the newest `keep` checkpoints."""
    final = root / f"step-{step:08d}"
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    for stale in root.glob(".step-*.tmp"):  # left by a killed run
        shutil.rmtree(stale)
    temporary.mkdir(parents=True)
    for name, values in tensors.items():
        save_tensors(temporary / name, values)
    hashes = {name: file_hash(temporary / name) for name in tensors}
    write_json(temporary / STATE, {"step": step, "sha256": hashes, **facts})
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _sync_folder(root)
    earlier = [folder for folder in sorted(root.glob("step-*")) if folder.name <= final.name]
    for old in earlier[:-keep]:  # a later checkpoint is damaged: otherwise the run would have resumed from it
        shutil.rmtree(old)
    return final


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
            damaged = [name for name, digest in facts["sha256"].items() if file_hash(folder / name) != digest]
        except (HybridTokenizerError, OSError, KeyError, TypeError) as error:
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


def load_checkpoint_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file name."""
    return {path.name: load_tensors(path) for path in sorted(folder.glob("*.safetensors"))}


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a log. If a kill cuts it off, `trim_jsonl` removes it on resuming."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def trim_jsonl(path: Path, last_step: int) -> None:
    """Remove the rows after `last_step` and a half-written row, so that a resumed log equals that of an unbroken run."""
    if not path.exists():
        return
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= last_step:
            rows.append(json.dumps(row) + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(rows))
    os.replace(temporary, path)
