"""Foreign checkpoints to component folders: kind -> function. Other branches add their kinds to KINDS."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hybrid_tokenizer.checkpoints.files import read_foreign
from hybrid_tokenizer.errors import HybridTokenizerError


class Kind(NamedTuple):
    """`module` and `function(states, folder) -> lines` of one kind, imported when asked for; `files` is for people."""

    module: str
    function: str
    files: str


KINDS = {
    "blip2": Kind(
        "hybrid_tokenizer.semantic.conversion",
        "convert_blip2_lavis",
        "eva_vit_g.pth and blip2_pretrained.pth (LAVIS)",
    ),
    "blip2-transformers": Kind(
        "hybrid_tokenizer.semantic.conversion",
        "convert_blip2_transformers",
        "a BLIP-2 folder, or its weight files (blip2-itm-vit-g)",
    ),
    "seed1": Kind(
        "hybrid_tokenizer.semantic.conversion",
        "convert_seed1",
        "eva_vit_g.pth, causal_qformer.pth and seed_tokenizer.pth",
    ),
    "seed2": Kind(
        "hybrid_tokenizer.semantic.conversion",
        "convert_seed2",
        "seed_quantizer.pt, and eva_vit_g.pth where it has no visual_encoder",
    ),
}


def read_state(path: Path) -> dict[str, Tensor]:
    """A checkpoint file, or every safetensors file of a folder, with floats in fp32."""
    paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not paths:
        raise HybridTokenizerError(f"{path} holds no .safetensors file; give the weight files themselves")
    state = {key: value for one in paths for key, value in read_foreign(one).items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def convert(kind: str, paths: Sequence[Path], folder: Path) -> list[str]:
    """Convert the files of `kind` to the component folder `folder`. Returns lines on what was kept and dropped."""
    if kind not in KINDS:
        raise HybridTokenizerError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}")
    module, function, _ = KINDS[kind]
    return getattr(import_module(module), function)([read_state(path) for path in paths], folder)
