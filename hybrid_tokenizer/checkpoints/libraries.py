"""Models in the form that diffusers and transformers store: one file or shards, with every weight accounted for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import CONFIG_NAME, fill, load_tensors, read_config, read_foreign, read_json
from hybrid_tokenizer.errors import HybridTokenizerError

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of diffusers before 0.15, as the VAEs of Stable Diffusion 1.x still have them."""


@contextmanager
def quiet(logging: ModuleType) -> Iterator[None]:
    """Silence a library's progress bars and its notes about its own configuration keys; restore its settings afterwards.

    logging: `diffusers.utils.logging` or `transformers.utils.logging`.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_diffusers_model(folder: Path, kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> Any:
    """A model of a class of diffusers, in evaluation mode, with its weights in `dtype`.

    diffusers' own loader leaves a missing weight random, casts integers, and accepts values that are not finite.
    """
    import diffusers

    config = read_config(folder / CONFIG_NAME)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in read_weights(folder).items()}
    with quiet(diffusers.utils.logging):
        return fill(lambda: kind.from_config(config).to(dtype), state, str(folder))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a diffusers folder under today's names: from its shards, its safetensors file, or its pickle."""
    single, pickled = folder / f"{DIFFUSERS_WEIGHTS}.safetensors", folder / f"{DIFFUSERS_WEIGHTS}.bin"
    index = single.with_name(f"{single.name}.index.json")
    if index.is_file():
        state = read_shards(index)
    else:
        state = read_foreign(pickled) if pickled.is_file() and not single.is_file() else load_tensors(single)
    return {rename_attention(key): value for key, value in state.items()}


def read_shards(index: Path) -> dict[str, Tensor]:
    """The weights that an index lists, from the files beside it."""
    values = read_json(index)
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places or not all(is_file_name(name) for name in places.values()):
        raise HybridTokenizerError(f"{index} has no weight_map of names to files beside it; download the folder again")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        state |= load_tensors(index.parent / name)
    if absent := sorted(set(places) - set(state)):
        raise HybridTokenizerError(f"{index} lists {absent[0]}, which its files lack; download the folder again")
    return state


def is_file_name(name: Any) -> bool:
    """Whether this names a file of the same folder."""
    return isinstance(name, str) and name not in ("", "..") and name == Path(name).name


def rename_attention(key: str) -> str:
    """The name of today for a weight of an attention of old diffusers."""
    for old, new in OLD_ATTENTION.items():
        key = key.replace(old, new)
    return key
