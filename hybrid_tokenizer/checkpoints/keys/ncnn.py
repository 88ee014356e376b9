"""ncnn's two files of a super-resolution network (RRDBNet) to the state dict that its authors' .pth holds."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError

HALF_FLAG = 0x01306B47
"""Before each convolution's weights: this number for fp16, 0 for fp32. Biases are fp32 and follow without a flag."""
WORD = 4  # bytes; everything in the .bin is aligned to it
TAIL = ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
CONVOLUTIONS_A_BLOCK = 15
RGB = 3


def rrdbnet_from_ncnn(param: Path, weights: Path) -> dict[str, Tensor]:
    """The state dict in fp32: convolutions named by their order, which is that of the forward pass.

    Raises where the files are missing, the network is no RRDBNet, or bytes are missing or left over.
    """
    for path in (param, weights):
        if not path.is_file():
            raise HybridTokenizerError(f"{path} does not exist; give the folder with both files of the ncnn model")
    shapes = convolution_shapes(param)
    blocks, rest = divmod(len(shapes) - 1 - len(TAIL), CONVOLUTIONS_A_BLOCK)
    if rest or blocks < 1 or shapes[0][1] != RGB or shapes[-1][0] != RGB:
        raise HybridTokenizerError(
            f"{param} has {len(shapes)} convolutions, an RRDBNet has {1 + len(TAIL)} and {CONVOLUTIONS_A_BLOCK} a block, "
            "from RGB to RGB; give the files of realesrgan-x4plus"
        )
    inside = (f"body.{b}.rdb{r}.conv{c}" for b, r, c in product(range(blocks), range(1, 4), range(1, 6)))
    names = ["conv_first", *inside, *TAIL]
    data, offset = weights.read_bytes(), 0

    def take(kind: type, count: int) -> np.ndarray:
        nonlocal offset
        size = -(-count * np.dtype(kind).itemsize // WORD) * WORD
        if offset + size > len(data):
            raise HybridTokenizerError(f"{weights} ends early; download or install it again")
        offset += size
        return np.frombuffer(data, kind, count, offset - size)

    state: dict[str, Tensor] = {}
    for name, shape in zip(names, shapes, strict=True):
        flag = int(take(np.uint32, 1)[0])
        if flag not in (0, HALF_FLAG):
            raise HybridTokenizerError(f"{weights} stores {name} in an unknown form (flag {flag:#x}); use fp16 files")
        weight = take(np.float16 if flag else np.float32, math.prod(shape))
        state[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32).reshape(shape))
        state[f"{name}.bias"] = torch.from_numpy(take(np.float32, shape[0]).copy())
    if offset != len(data):
        raise HybridTokenizerError(
            f"{weights} is {len(data)} bytes, {param.name} describes {offset}; they belong to two models"
        )
    return state


def convolution_shapes(param: Path) -> list[tuple[int, int, int, int]]:
    """(out, in, kernel, kernel) of every convolution of a .param file, in its order."""
    shapes = []
    for line in param.read_text().splitlines():
        fields = line.split()
        if fields[:1] == ["Convolution"]:
            values = dict(field.split("=", 1) for field in fields if "=" in field)
            out, kernel, count = (int(values[key]) for key in ("0", "1", "6"))
            shapes.append((out, count // (out * kernel**2), kernel, kernel))
    return shapes
