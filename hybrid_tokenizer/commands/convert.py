"""Convert published checkpoint files to a component folder of config.json and safetensors.

Pickles are read as tensors only; nothing in them is executed.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from hybrid_tokenizer.errors import HybridTokenizerError

# the functions import what they need, so that `--help` needs no model library


class Kind(NamedTuple):
    """A layout of published weights. A new kind is a function and a row of `KINDS`."""

    module: str
    function: str
    """`function(states, folder) -> lines` of `module`, which is imported when it is asked for."""
    files: str
    """What the user gives, for the help."""
    reads_paths: bool = False
    """The function takes the paths themselves, `function(paths, folder) -> lines`, because it needs more than tensors."""


SEMANTIC = "hybrid_tokenizer.semantic.conversion"
KINDS = {
    "movq": Kind(
        "hybrid_tokenizer.guide.conversion",
        "convert_movq",
        "MoVQGAN's checkpoint (movqgan_270M.ckpt), or Kandinsky's folder movq/",
        reads_paths=True,
    ),
    "blip2": Kind(SEMANTIC, "convert_blip2_lavis", "eva_vit_g.pth and blip2_pretrained.pth (LAVIS)"),
    "blip2-transformers": Kind(
        SEMANTIC, "convert_blip2_transformers", "a BLIP-2 folder, or its weight files (blip2-itm-vit-g)"
    ),
    "seed1": Kind(SEMANTIC, "convert_seed1", "eva_vit_g.pth, causal_qformer.pth and seed_tokenizer.pth"),
    "seed2": Kind(SEMANTIC, "convert_seed2", "seed_quantizer.pt, and eva_vit_g.pth if that file has no visual_encoder"),
}


def read_state(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a checkpoint file, or of every safetensors file in a folder; floats become fp32."""
    from hybrid_tokenizer.checkpoints.files import read_foreign

    paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not paths:
        raise HybridTokenizerError(f"{path} holds no .safetensors file; give the weight files themselves")
    return {key: value for one in paths for key, value in read_foreign(one).items()}


def convert(kind: str, paths: Sequence[Path], folder: Path) -> list[str]:
    """Convert the files of `kind` to the component folder `folder`. Returns lines on what was kept and dropped."""
    from hybrid_tokenizer.checkpoints.configs import one_line

    if kind not in KINDS:
        raise HybridTokenizerError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}")
    chosen = KINDS[kind]
    function = getattr(import_module(chosen.module), chosen.function)
    with one_line(f"the {kind} checkpoint"):
        return function(list(paths) if chosen.reads_paths else [read_state(path) for path in paths], folder)


def main() -> None:
    kinds = "\n".join(f"  {name:20} {kind.files}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"kinds and their files:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="layout of the files; see the list below")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="the checkpoint's files, in any order")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the component folder to write")
    options = parser.parse_args()
    try:
        lines = convert(options.kind, options.files, options.output)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(lines))
