"""Folders of `config.json` + `model.safetensors`, written atomically and loaded strictly; foreign files read safely.

Every weights file goes through `load_tensors` or `read_foreign`, and every JSON file through `read_json` or `read_config`.
"""

import dataclasses
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.configs import UNREADABLE, one_line
from hybrid_tokenizer.checkpoints.hub import FOREIGN_SUFFIXES
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, shorten, shown

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_JSON_BYTES = 2**30
"""Of any JSON file. COCO's largest annotations have half of that."""
MAX_CONFIG_BYTES = 2**20
MAX_NUMBER = 2**20
"""Of a number in a configuration: four times the largest published codebook."""
MAX_LAYERS = 1000
"""Of a number whose name says that it counts layers or blocks, and of a list's entries."""
MAX_DEPTH = 16
MOST_LETTERS = 50
COMPILED, PARALLEL = "_orig_mod.", "module."
"""What torch.compile inserts into the names of weights, and what DistributedDataParallel puts before them."""
Module = TypeVar("Module", bound=nn.Module)


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to disk, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    with temporary_file(temporary):
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """JSON, atomically. Infinities and NaN are refused, since other readers refuse them.

    A file name with bytes that are not UTF-8 holds surrogates, which are written as JSON's own escapes.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode(errors="backslashreplace"))


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """JSON of a file of at most `most_bytes`, with an error that names the file."""
    try:
        if (size := path.stat().st_size) > most_bytes:
            raise HybridTokenizerError(f"{path} has {size} bytes, expected at most {most_bytes}; give the right file")
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HybridTokenizerError(f"{path} does not exist; is {path.parent} the right folder?") from None
    except HybridTokenizerError:
        raise
    except (ValueError, RecursionError) as error:
        raise HybridTokenizerError(f"{path} is not valid JSON ({error}); write or download it again") from None
    except OSError as error:
        raise HybridTokenizerError(f"{path} cannot be read ({error.strerror}); give a file that you may read") from None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object whose numbers and lists are small enough for a model: building from it cannot take forever."""
    values = read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise HybridTokenizerError(f"{path} holds {shown(values)}, expected an object; write or download it again")
    check_sizes(values, str(path))
    return values


def check_sizes(value: Any, source: str, name: str = "", depth: int = 0) -> None:
    """Raise on a number, a list or a nesting of a configuration beyond the stated bounds."""
    if depth > MAX_DEPTH:
        raise HybridTokenizerError(f"{source} is nested deeper than {MAX_DEPTH}; write or download it again")
    if isinstance(value, (dict, list)) and len(value) > MAX_LAYERS:
        raise HybridTokenizerError(f"{source}: {name} has {len(value)} entries, expected at most {MAX_LAYERS}")
    if isinstance(value, dict):
        for key, entry in value.items():
            check_sizes(entry, source, key, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            check_sizes(entry, source, name, depth + 1)
    elif isinstance(value, (int, float)):
        most = MAX_LAYERS if re.search("layers|blocks", name) else MAX_NUMBER
        if not abs(value) <= most:  # not NaN either
            raise HybridTokenizerError(f"{source}: {name} is {shown(value)}, expected at most {most}; correct it")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors to a safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    with temporary_file(temporary):
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary, metadata=metadata
        )
        give_umask_mode(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def temporary_path(path: Path) -> Path:
    """Where a file is written before it is renamed. The name of the file itself may have all the bytes that a name can have."""
    return path.with_name(f".{path.name[:MOST_LETTERS]}.{os.getpid()}.tmp")


@contextmanager
def temporary_file(path: Path) -> Iterator[None]:
    """Around writing a file that is renamed at the end: a failure leaves nothing of it."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def give_umask_mode(*paths: Path) -> None:
    """Let files have the mode that the umask asks for. safetensors writes them for their owner alone, whatever it says."""
    for path in paths:
        probe = temporary_path(path.with_name(f"mode.{path.name}"))
        with temporary_file(probe), open(probe, "wb") as file:
            path.chmod(os.fstat(file.fileno()).st_mode & 0o777)
        probe.unlink()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU. Values that are not finite are refused."""
    if not path.is_file():
        raise HybridTokenizerError(f"{path} does not exist; is {path.parent} the right folder?")
    try:
        tensors = load_file(path)
    except (SafetensorError, *UNREADABLE) as error:
        raise HybridTokenizerError(
            f"{path} is damaged or incomplete ({first_line(error)}); write or download it again"
        ) from None
    check_finite(tensors, str(path))
    return tensors


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise where a floating tensor holds NaN or an infinity."""
    wrong = sorted(key for key, value in tensors.items() if not is_finite(value))
    if wrong:
        raise HybridTokenizerError(
            f"{source} has values that are not finite in {shorten(wrong)}; it is damaged, or its training diverged: "
            "download it again, or take an earlier checkpoint"
        )


def is_finite(tensor: Tensor) -> bool:
    """One pass without a mask: least and greatest are NaN where any value is."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no minimum
    return all(bound.isfinite().item() for bound in values.aminmax())


def load_strict(module: nn.Module, state_dict: dict[str, Tensor], source: str, ignore: Iterable[str] = ()) -> None:
    """Load every key, every shape and floats as floats, or raise with the lists. `ignore`: target keys that may stay."""
    check_fits(module, state_dict, source, ignore)
    target = module.state_dict()
    module.load_state_dict({**{key: target[key] for key in set(ignore) & set(target)}, **state_dict})


def check_fits(module: nn.Module, state_dict: Mapping[str, Tensor], source: str, ignore: Iterable[str] = ()) -> None:
    """Raise with the lists of keys that are missing, unexpected, of another shape, or no floats where floats belong."""
    target = module.state_dict()
    shared = sorted(set(target) & set(state_dict))
    parts = {
        "missing": sorted(set(target) - set(state_dict) - set(ignore)),
        "unexpected": sorted(set(state_dict) - set(target)),
        "misshapen": [
            f"{key} {tuple(state_dict[key].shape)} in the file, {tuple(target[key].shape)} in the model"
            for key in shared
            if state_dict[key].shape != target[key].shape
        ],
        "not floating": [
            f"{key} {state_dict[key].dtype}"
            for key in shared
            if target[key].is_floating_point() and not state_dict[key].is_floating_point()
        ],
    }
    if any(parts.values()):
        listed = "; ".join(f"{len(keys)} {what}: {shorten(keys)}" for what, keys in parts.items() if keys)
        raise HybridTokenizerError(
            f"{source} does not fit this {type(module).__name__}: {listed}; "
            "check that the weights belong to this model configuration"
        )


def save_component(folder: Path, config: Any, module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """A dataclass and a module's weights to `folder`; floating weights cast to `dtype` when given."""
    state = module.state_dict()
    if dtype is not None:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_tensors(folder / WEIGHTS_NAME, state)
    write_json(folder / CONFIG_NAME, dataclasses.asdict(config))


def load_component(folder: Path, build: Callable[[], Module]) -> Module:
    """`fill` with the weights of a component folder."""
    return fill(build, in_fp32(load_tensors(folder / WEIGHTS_NAME)), str(folder))


def fill(build: Callable[[], Module], state_dict: dict[str, Tensor], source: str) -> Module:
    """The module that `build` makes, with these weights, in evaluation mode.

    It takes the weights as they are, so no time goes into random values. It is first built without any memory: a
    configuration that asks for other shapes than the file has is refused at no cost.
    """
    with one_line(source):
        with torch.device("meta"):
            module = build()
        check_fits(module, state_dict, source)
        if any(name not in state_dict for name, _ in module.named_buffers()):  # these are not stored but computed
            from accelerate import init_empty_weights

            with init_empty_weights(include_buffers=False):
                module = build()
        module.load_state_dict(state_dict, assign=True)
    return module.eval()


def in_fp32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors in fp32, the others as they are."""
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_component_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a component folder, in fp32 (files may hold fp16)."""
    return in_fp32(load_tensors(folder / WEIGHTS_NAME))


def read_foreign(path: Path, wrappers: tuple[str, ...] = ("state_dict", "model")) -> dict[str, Tensor]:
    """A published checkpoint file as a flat state dict, floats in fp32: `.safetensors`, or a pickle of tensors.

    Unwraps one level of each of `wrappers`, in their order, and what torch.compile and DistributedDataParallel add to names.
    Raises when the file is missing, half downloaded, or holds code, and where a value is not finite.
    """
    if not path.is_file():
        raise HybridTokenizerError(f"checkpoint {path} does not exist; give the path of the downloaded file")
    if path.suffix not in FOREIGN_SUFFIXES:
        raise HybridTokenizerError(
            f"checkpoint {path} ends in {path.suffix!r}; expected one of {', '.join(FOREIGN_SUFFIXES)}"
        )
    if path.suffix == ".safetensors":
        return in_fp32(strip_wrappers(load_tensors(path), str(path)))
    value = read_pickle(path)
    for wrapper in wrappers:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not all(isinstance(k, str) and is_plain(v) for k, v in value.items()):
        raise HybridTokenizerError(
            f"checkpoint {path} is not a state dict of tensors; expected names mapped to dense tensors"
        )
    check_finite(value, f"checkpoint {path}")
    return in_fp32(strip_wrappers(value, str(path)))


def read_pickle(path: Path) -> Any:
    """What `torch.load` makes of a file that holds tensors and plain values alone. No code in it is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise HybridTokenizerError(
            f"checkpoint {path} cannot be read safely ({unpickling_failure(error)}); it is incomplete or holds more than "
            "tensors: download it again, or convert it to safetensors where you trust it"
        ) from None


def unpickling_failure(error: BaseException) -> str:
    """What torch says, without its advice to switch the safety off."""
    if "weights_only" in str(error):
        named = re.search(r"(?:GLOBAL|class) ([A-Za-z_][\w.]+)", str(error))
        return f"it names {named[1]}" if named else "it holds other objects"
    return f"{type(error).__name__}: {first_line(error).split('. ')[0]}"


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor of real numbers."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_complex() or value.is_quantized)
    )


def strip_wrappers(state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Without `_orig_mod.` anywhere in a name and `module.` before all of them; a warning says what was stripped."""
    names = {key: key.replace(COMPILED, "") for key in state_dict}
    while names and all(name.startswith(PARALLEL) for name in names.values()):
        names = {key: name.removeprefix(PARALLEL) for key, name in names.items()}
    changed = sum(key != name for key, name in names.items())
    if not changed:
        return state_dict
    if len(set(names.values())) < len(names):
        raise HybridTokenizerError(
            f"{source} holds weights twice, with and without {COMPILED}; save the model's own state_dict"
        )
    warnings.warn(f"{source}: stripped {PARALLEL} and {COMPILED} from the names of {changed} weights", stacklevel=3)
    return {names[key]: value for key, value in state_dict.items()}


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
