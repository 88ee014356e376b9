"""DALL-E's discrete VAE (Ramesh et al. 2021): 8,192 codes at an eighth of the side, a softmax over codes in training.

The two published files are pickles of whole modules. They are read without running any code of theirs: torch's restricted
unpickler builds tensors and, for each class that these files name, an empty object with the attributes that were stored.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.grid_row import GridRow
from hybrid_tokenizer.checkpoints.files import check_finite, fill, in_fp32, read_pickle
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import to_unit

FILES = {"encoder": "encoder.pkl", "decoder": "decoder.pkl"}
MODULES = (
    "dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock", "dall_e.decoder.Decoder", "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d", "torch.nn.modules.container.Sequential", "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d", "torch.nn.modules.upsampling.Upsample", "torch.nn.modules.linear.Identity",
)  # fmt: skip
"""The classes that the published files name. A file with another one is refused."""
MARGIN = 0.1
"""Pixels are squeezed into [0.1, 0.9], where the logit-Laplace likelihood of the paper (eq. 2) is defined."""
GROUPS = 4
DEEPEST = 16


class Stored:
    """What stands in for a module of a file: attributes, and no behaviour."""


@dataclass
class DalleConfig:
    """Width `channels` at full size, doubled at each of three halvings; `blocks` residual blocks per resolution."""

    channels: int = 256
    decoder_input: int = 128
    blocks: int = 2
    codebook_size: int = 8192

    @property
    def gain(self) -> float:
        """Of each block's residual path: one over the squared number of blocks."""
        return 1 / (GROUPS * self.blocks) ** 2


class Block(nn.Module):
    """Four convolutions after a ReLU each, scaled, added to the input. The kernels' sizes differ by half of the model."""

    def __init__(self, inner: int, outer: int, kernels: tuple[int, int, int, int], gain: float):
        super().__init__()
        hidden = outer // 4
        widths = (inner, hidden, hidden, hidden, outer)
        self.gain = gain
        self.id_path = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)
        layers: list[tuple[str, nn.Module]] = []
        for i, kernel in enumerate(kernels):
            layers.append((f"relu_{i + 1}", nn.ReLU()))
            layers.append((f"conv_{i + 1}", nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)))
        self.res_path = nn.Sequential(OrderedDict(layers))

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.id_path(hidden) + self.gain * self.res_path(hidden)


class Half(nn.Module):
    """Encoder or decoder. Group i works at `widths[i]`, and `resample` stands between groups."""

    def __init__(
        self, first: nn.Module, entering: int, widths: list[int], kernels: tuple[int, int, int, int],
        resample: nn.Module, name: str, last: nn.Module, config: DalleConfig,
    ):  # fmt: skip
        super().__init__()
        groups: list[tuple[str, nn.Module]] = [("input", first)]
        for i, width in enumerate(widths):
            inputs = [entering if i == 0 else widths[i - 1], *[width] * (config.blocks - 1)]
            layers: list[tuple[str, nn.Module]] = [
                (f"block_{j + 1}", Block(inner, width, kernels, config.gain)) for j, inner in enumerate(inputs)
            ]
            groups.append((f"group_{i + 1}", nn.Sequential(OrderedDict([*layers, *([(name, resample)] if i < GROUPS - 1 else [])]))))  # fmt: skip
        groups.append(("output", nn.Sequential(OrderedDict([("relu", nn.ReLU()), ("conv", last)]))))
        self.blocks = nn.Sequential(OrderedDict(groups))

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        return self.blocks(hidden)


class DalleVae(nn.Module):
    """Images to the likeliest code at each position, and back to the mean of the pixels."""

    downsample_factor = 2 ** (GROUPS - 1)

    def __init__(self, config: DalleConfig):
        super().__init__()
        self.config = config
        rising = [config.channels * 2**i for i in range(GROUPS)]
        codes = config.codebook_size
        self.encoder = Half(
            nn.Conv2d(3, rising[0], 7, padding=3), rising[0], rising, (3, 3, 3, 1), nn.MaxPool2d(2), "pool",
            nn.Conv2d(rising[-1], codes, 1), config,
        )  # fmt: skip
        self.decoder = Half(
            nn.Conv2d(codes, config.decoder_input, 1), config.decoder_input, rising[::-1], (1, 3, 3, 3),
            nn.Upsample(scale_factor=2, mode="nearest"), "upsample", nn.Conv2d(rising[0], 6, 1), config,
        )  # fmt: skip

    @property
    def codebook_size(self) -> int:
        """Codes in the vocabulary."""
        return self.config.codebook_size

    def logits(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k h w"]:
        """Of the codes at each position."""
        return self.encoder((1 - 2 * MARGIN) * to_unit(images) + MARGIN)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b h w"], ...]:
        """Images to one grid of indices."""
        return (self.logits(images).argmax(dim=1),)

    @torch.no_grad()
    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]:
        """Indices alone to images in [-1, 1]. Three of the six output channels are the spread, which is not used."""
        (indices,) = grids
        first, *rest = self.decoder.blocks
        # a 1x1 convolution of one-hot codes is a lookup of its columns
        columns = rearrange(first.weight, "d k 1 1 -> k d")
        hidden = rearrange(F.embedding(indices, columns) + first.bias, "b h w d -> b d h w")
        for layer in rest:
            hidden = layer(hidden)
        unit = ((hidden[:, :3].sigmoid() - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)
        return 2 * unit - 1


def read_modules(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled module by name, without running code of the file."""
    if not path.is_file():
        raise HybridTokenizerError(
            f"checkpoint {path} does not exist; give the folder with {' and '.join(FILES.values())}"
        )
    with torch.serialization.safe_globals([(Stored, name) for name in MODULES]):
        root = read_pickle(path)
    state = dict(tensors_of(root))
    if not state:
        raise HybridTokenizerError(f"checkpoint {path} holds no module with weights; give DALL-E's {path.name}")
    check_finite(state, f"checkpoint {path}")
    return in_fp32(state)


def tensors_of(module: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters below a stored module."""
    if not isinstance(module, Stored) or depth > DEEPEST:
        return
    for name, value in (getattr(module, "_parameters", None) or {}).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
    for name, child in (getattr(module, "_modules", None) or {}).items():
        yield from tensors_of(child, f"{prefix}{name}.", depth + 1)


def build_dalle(state: dict[str, Tensor], source: str) -> DalleVae:
    """The model from the tensors of both files, under `encoder.` and `decoder.`."""
    names = {"w": "weight", "b": "bias"}
    renamed = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        renamed[f"{stem}.{names.get(last, last)}"] = value
    needed = ("encoder.blocks.input.weight", "encoder.blocks.output.conv.weight", "decoder.blocks.input.weight")
    if absent := [key for key in needed if key not in renamed]:
        raise HybridTokenizerError(f"{source} has no {', '.join(absent)}; give DALL-E's encoder.pkl and decoder.pkl")
    config = DalleConfig(
        channels=len(renamed[needed[0]]),
        decoder_input=len(renamed[needed[2]]),
        blocks=sum(
            key.startswith("encoder.blocks.group_1.block_") and key.endswith("conv_1.weight") for key in renamed
        ),
        codebook_size=len(renamed[needed[1]]),
    )
    return fill(lambda: DalleVae(config), renamed, source)


def load_dalle_row(name: str, folder: Path) -> GridRow:
    """The row of both published files in one folder."""
    state = {
        f"{half}.{key}": value for half, file in FILES.items() for key, value in read_modules(folder / file).items()
    }
    return GridRow(name, build_dalle(state, str(folder)))
