"""Rows for tokenizers whose tokens are grids of indices: padding, cropping and counting."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import check_range, resize_bicubic


class GridModel(Protocol):
    """A bare model. It takes images whose sides are multiples of `downsample_factor`."""

    codebook_size: int
    downsample_factor: int

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b _ _"], ...]: ...

    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]: ...


@dataclass(frozen=True)
class GridTokens:
    """Indices, coarse to fine, and the image size before padding, which a file would store in its header."""

    grids: tuple[Int[Tensor, "b _ _"], ...]
    image_size: tuple[int, int]


class GridRow(nn.Module):
    """A GridModel as an ImageTokenizer.

    Images are padded by reflection to a multiple of the model's factor, and decoded images are cropped back. For a model
    with one input size (`native_size`), images are resized instead.
    """

    deterministic = True

    def __init__(self, name: str, model: nn.Module, native_size: int | None = None):
        super().__init__()
        self.name = name
        self.model = model
        self.native_size = native_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> GridTokens:
        """Deterministic: the generator is not used."""
        check_range(images)
        images = images.to(self.device).float()
        size = (images.shape[-2], images.shape[-1])
        if self.native_size is not None:
            fitted = resize_bicubic(images, (self.native_size, self.native_size)).clamp(-1, 1)
        else:
            fitted = pad_to_multiple(images, self.model.downsample_factor)
        return GridTokens(self.model.encode(fitted), size)

    @torch.no_grad()
    def decode(
        self, tokens: GridTokens, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """Indices alone to images of `size`."""
        check_indices(tokens.grids, self.model.codebook_size)
        decoded = self.model.decode(tokens.grids).clamp(-1, 1)
        if self.native_size is None:
            decoded = decoded[..., : tokens.image_size[0], : tokens.image_size[1]]
        return resize_bicubic(decoded, size).clamp(-1, 1)

    def num_tokens(self, tokens: GridTokens) -> Int[Tensor, "b"]:
        """All scales together."""
        count = sum(grid.shape[1] * grid.shape[2] for grid in tokens.grids)
        return torch.full((len(tokens.grids[0]),), count)

    def bits(self, tokens: GridTokens) -> Float[Tensor, "b"]:
        """log2 of the codebook's size for each token."""
        return self.num_tokens(tokens).float() * math.log2(self.model.codebook_size)

    def codebook_indices(self, tokens: GridTokens) -> dict[str, tuple[Int[Tensor, "b n"], int]]:
        """All indices, flat, and the codebook's size."""
        flat = torch.cat([grid.flatten(1) for grid in tokens.grids], dim=1)
        return {"codebook": (flat, self.model.codebook_size)}


def check_indices(grids: Iterable[Int[Tensor, "..."]], codebook_size: int) -> None:
    """Raise where an index names no code."""
    for grid in grids:
        low, high = grid.aminmax() if grid.numel() else (0, 0)
        if low < 0 or high >= codebook_size:
            raise HybridTokenizerError(
                f"indices span {int(low)} to {int(high)}; this codebook has 0..{codebook_size - 1}: decode with the "
                "tokenizer that made them"
            )


def pad_to_multiple(images: Float[Tensor, "b 3 h w"], factor: int) -> Float[Tensor, "b 3 H W"]:
    """Pad by reflection, below and to the right."""
    height, width = images.shape[-2:]
    below, right = -height % factor, -width % factor
    if below >= height or right >= width:
        raise HybridTokenizerError(
            f"image size {height}x{width} (height x width) cannot be padded by reflection to a multiple of {factor}; "
            f"give an image of at least {factor // 2 + 1} pixels per side"
        )
    return F.pad(images, (0, right, 0, below), mode="reflect") if below or right else images
