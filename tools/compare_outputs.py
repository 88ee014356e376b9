"""Compare tokens and decoded images of the tiny preset between this checkout and another one, bit by bit.

    python tools/compare_outputs.py OTHER_CHECKOUT     exits with 1 where a tensor differs
    python tools/compare_outputs.py --dump FILE        writes the tensors of the package on the path

The images are built-in photographs. Each checkout runs in a process of its own with one thread. `linear_estimate` is written
as `ddim_inversion` with `inversion_condition: guide` for a checkout from before 2026-11-27, which has no other name for it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = 4
LINEAR = {"start": "linear_estimate"}
DECODES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear_s0.4": {**LINEAR, "strength": 0.4, "num_inference_steps": 10},
    "linear_guided": {**LINEAR, "guidance_scale": 2.0},
    "inversion": {"start": "ddim_inversion", "inversion_condition": "generation", "strength": 0.4, "num_inference_steps": 10},
    "inversion_null": {"start": "ddim_inversion", "inversion_condition": "null", "strength": 0.2},
    "add_noise": {"start": "add_noise", "strength": 0.4, "num_inference_steps": 10},
    "strength_0": {"strength": 0.0},
}  # fmt: skip


def dump(file: Path) -> None:
    """Write the tokens, with and without search, and the images of each way of decoding."""
    from hybrid_tokenizer.data.samples import sample_photographs
    from hybrid_tokenizer.diffusion.config import STARTS
    from hybrid_tokenizer.hybrid import HybridTokenizer
    from hybrid_tokenizer.images import fit_square, from_pil

    torch.set_num_threads(1)
    tokenizer = HybridTokenizer.from_pretrained("tiny")
    photographs = list(sample_photographs().values())[:NUM_IMAGES]
    images = torch.stack([from_pil(fit_square(photograph, 256)) for photograph in photographs])
    tensors = {}
    for steps in (0, 2):
        tokens = tokenizer.encode(images, search_steps=steps)
        tensors[f"search{steps}.semantic"] = tokens.semantic_indices
        tensors |= {f"search{steps}.guide{i}": grid for i, grid in enumerate(tokens.guide_indices)}
    tokens = tokenizer.encode(images, search_steps=0)
    for name, options in DECODES.items():
        if options.get("start") == "linear_estimate" and "linear_estimate" not in STARTS:
            options = options | {"start": "ddim_inversion", "inversion_condition": "guide"}
        tensors[f"decode.{name}"] = tokenizer.decode(tokens, generator=torch.Generator().manual_seed(1), **options)
    prefix = tokenizer.encode(images, guide_scales=2, search_steps=0)
    tensors["decode.prefix"] = tokenizer.decode(prefix)
    tensors["decode.null_condition"] = tokenizer.decode_indices(None, tokens.guide_indices, tokens.image_size)
    tensors["decode.semantic_only"] = tokenizer.decode_indices(tokens.semantic_indices, None, tokens.image_size)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def outputs_of(checkout: Path) -> dict[str, Tensor]:
    """What `dump` writes with the package of `checkout`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outputs.safetensors"
        command = [sys.executable, __file__, "--dump", str(file)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(checkout)}, cwd=checkout)
        return load_file(file)


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """The names whose tensors are not equal bit for bit, or stand on one side only."""
    both = ours.keys() & theirs.keys()
    return sorted(
        name for name in ours.keys() | theirs.keys() if name not in both or not torch.equal(ours[name], theirs[name])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("other", nargs="?", type=Path, help="folder of the other checkout")
    mode.add_argument("--dump", type=Path, metavar="FILE", help="write this checkout's tensors as safetensors")
    arguments = parser.parse_args()
    if arguments.dump:
        dump(arguments.dump)
        return
    if not (arguments.other / "hybrid_tokenizer").is_dir():
        raise SystemExit(f"error: {arguments.other} holds no hybrid_tokenizer/; give the folder of a checkout")
    ours, theirs = outputs_of(ROOT), outputs_of(arguments.other.resolve())
    differing = compare(ours, theirs)
    for name in sorted(ours.keys() | theirs.keys()):
        print(f"{name:24} {'DIFFERENT' if name in differing else 'equal'}")
    if differing:
        raise SystemExit(f"error: {len(differing)} tensors differ: {', '.join(differing)}")
    print(f"{len(ours)} tensors are bit-identical")


if __name__ == "__main__":
    main()
