"""Folders of `config.json` + `model.safetensors`, written atomically and loaded strictly; foreign files read safely."""

import dataclasses
import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FOREIGN_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    zipfile.BadZipFile,
)
"""What torch.load raises for one and the same cause: a file that is cut off, or is no pickle of tensors."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to disk, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """JSON, atomically. Infinities and NaN are refused, since other readers refuse them."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """JSON of a file, with an error that names the file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise HybridTokenizerError(f"{path} does not exist; is {path.parent} the right folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HybridTokenizerError(f"{path} is not valid JSON ({error}); write or download it again") from None


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors to a safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU."""
    if not path.is_file():
        raise HybridTokenizerError(f"{path} does not exist; is {path.parent} the right folder?")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise HybridTokenizerError(f"{path} is damaged or incomplete ({error}); write or download it again") from None


def load_strict(module: nn.Module, state_dict: dict[str, Tensor], source: str, ignore: Iterable[str] = ()) -> None:
    """Load every key and every shape, or raise with the lists. `ignore` are target keys that may stay as they are."""
    target = module.state_dict()
    ignored = set(ignore)
    missing = sorted(set(target) - set(state_dict) - ignored)
    unexpected = sorted(set(state_dict) - set(target))
    misshapen = sorted(
        f"{key} {tuple(state_dict[key].shape)} in the file, {tuple(target[key].shape)} in the model"
        for key in set(target) & set(state_dict)
        if state_dict[key].shape != target[key].shape
    )
    if missing or unexpected or misshapen:
        parts = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        listed = "; ".join(f"{len(keys)} {what}: {shorten(keys)}" for what, keys in parts if keys)
        raise HybridTokenizerError(
            f"{source} does not fit this {type(module).__name__}: {listed}; "
            "check that the weights belong to this model configuration"
        )
    module.load_state_dict({**{key: target[key] for key in ignored & set(target)}, **state_dict})


def shorten(keys: list[str], most: int = 6) -> str:
    """The first few keys and how many more there are."""
    return ", ".join(keys[:most]) + (f", and {len(keys) - most} more" if len(keys) > most else "")


def save_component(folder: Path, config: Any, module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """A dataclass and a module's weights to `folder`; floating weights cast to `dtype` when given."""
    state = module.state_dict()
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_tensors(folder / WEIGHTS_NAME, state)
    write_json(folder / CONFIG_NAME, dataclasses.asdict(config))


def load_component_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a component folder, in fp32 (files may hold fp16)."""
    return {k: v.float() if v.is_floating_point() else v for k, v in load_tensors(folder / WEIGHTS_NAME).items()}


def read_foreign(path: Path, wrappers: tuple[str, ...] = ("state_dict", "model")) -> dict[str, Tensor]:
    """A published checkpoint file as a flat state dict: `.safetensors`, or a pickle of tensors read with weights_only=True.

    Unwraps one level of each of `wrappers`, in their order. Raises when the file is missing, half downloaded, or holds code.
    """
    if not path.is_file():
        raise HybridTokenizerError(f"checkpoint {path} does not exist; give the path of the downloaded file")
    if path.suffix not in FOREIGN_SUFFIXES:
        raise HybridTokenizerError(
            f"checkpoint {path} ends in {path.suffix!r}; expected one of {', '.join(FOREIGN_SUFFIXES)}"
        )
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HybridTokenizerError(
            f"checkpoint {path} cannot be read safely ({reason}); it is incomplete or holds more than tensors: "
            "download it again, or convert it to safetensors where you trust it"
        ) from None
    for wrapper in wrappers:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise HybridTokenizerError(
            f"checkpoint {path} is not a state dict of tensors; expected names mapped to tensors"
        )
    return value


def file_hash(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_hash(module: nn.Module, dtype: torch.dtype = torch.float32) -> str:
    """sha256 over a module's tensors in key order, rounded to `dtype`, so that storage dtype and device do not change it.

    With float16, weights hash the same before and after they were stored in fp16.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update((value.to(dtype) if value.is_floating_point() else value).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
