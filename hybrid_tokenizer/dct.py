"""A fixed cosine transform beside an autoencoder's networks. The networks learn a correction to it, so training starts
from a sharp, coloured image."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.images import resize_area

CHROMA_DELAY = 1.5
"""How many steps of frequency a colour difference is ordered after the luminance, because photographs vary less in colour."""


class LinearPath(nn.Module):
    """Maps each block of an image to its `d` lowest cosine coefficients, and coefficients back to blocks.

    Both directions are convolutions with kernel and stride `block` that are not trained: Adam's first steps would
    destroy weights this small. Features are scaled by 1 / `block`, so the first is the block's mean luminance times
    sqrt(3).
    """

    def __init__(self, dims: int, block: int):
        super().__init__()
        self.block = block
        self.register_buffer("basis", dct_basis(dims, block))

    def features(self, images: Float[Tensor, "b 3 H W"], grid_size: tuple[int, int]) -> Float[Tensor, "b h w d"]:
        """One vector per block of the image, which is first area-resized to `grid_size` blocks."""
        height, width = grid_size
        resized = resize_area(images, (height * self.block, width * self.block))
        with full_precision(images.device):  # bf16 would drown the high frequencies
            coefficients = F.conv2d(resized.to(self.basis.dtype), self.basis, stride=self.block)
        return rearrange(coefficients / self.block, "b d h w -> b h w d")

    def images(self, features: Float[Tensor, "b h w d"]) -> Float[Tensor, "b 3 hb wb"]:
        """Image of the blocks side by side. It is not clamped."""
        coefficients = rearrange(features, "b h w d -> b d h w").to(self.basis.dtype) * self.block
        with full_precision(features.device):
            return F.conv_transpose2d(coefficients, self.basis, stride=self.block)


class CosineScale(nn.Module):
    """Converts cosine coefficients of blocks to those of blocks `factor` times as wide, which cover factor x factor of
    them, and back.

    A coarse code thus describes its block in as much detail as a fine code describes its own. Means over fine
    coefficients would keep little beyond the mean colour. A grid that `factor` does not divide is resized to the
    nearest grid that it divides, and back.
    """

    def __init__(self, dims: int, block: int, factor: int):
        super().__init__()
        self.factor = factor
        fine, coarse = dct_basis(dims, block), dct_basis(dims, factor * block)
        cells = rearrange(coarse, "k c (i y) (j x) -> k c i y j x", y=block, x=block)
        kernel = torch.einsum("kciyjx,dcyx->kdij", cells, fine)
        self.register_buffer("kernel", kernel, persistent=False)

    def down(self, features: Float[Tensor, "b h w d"], size: tuple[int, int]) -> Float[Tensor, "b _ _ d"]:
        """Coefficients of the wide blocks, on a grid of `size` = (height, width)."""
        planes = resize_planes(rearrange(features, "b h w d -> b d h w"), [self.factor * side for side in size])
        with full_precision(features.device):
            coarse = F.conv2d(planes, self.kernel.to(planes.dtype), stride=self.factor) / self.factor
        return rearrange(coarse, "b d h w -> b h w d")

    def up(self, features: Float[Tensor, "b h w d"], size: tuple[int, int]) -> Float[Tensor, "b _ _ d"]:
        """Coefficients of the blocks inside the wide blocks, on a grid of `size`. `down` inverts this up to high frequencies."""
        planes = rearrange(features, "b h w d -> b d h w")
        with full_precision(features.device):
            fine = F.conv_transpose2d(planes, self.kernel.to(planes.dtype), stride=self.factor) * self.factor
        return rearrange(resize_planes(fine, list(size)), "b d h w -> b h w d")


def resize_planes(planes: Float[Tensor, "b d h w"], size: list[int]) -> Float[Tensor, "b d _ _"]:
    """Bilinear resize; returns the input if it has the size already."""
    if list(planes.shape[-2:]) == size:
        return planes
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context without autocast. The meta device has no autocast and raises when asked to disable it."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def dct_basis(dims: int, block: int) -> Float[Tensor, "dims 3 block block"]:
    """The first `dims` vectors, lowest frequency first, of an orthonormal basis of colour blocks.

    Type-II cosines along both sides; colours are luminance (1, 1, 1), red minus blue, and green against both.
    """
    positions = torch.arange(block, dtype=torch.float64) + 0.5
    cosines = torch.cos(math.pi / block * positions * torch.arange(block, dtype=torch.float64)[:, None])
    cosines = cosines / cosines.norm(dim=1, keepdim=True)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    entries = [(c, i, j) for c in range(3) for i in range(block) for j in range(block)]
    entries.sort(key=lambda entry: (entry[1] + entry[2] + CHROMA_DELAY * (entry[0] > 0), abs(entry[1] - entry[2])))
    vectors = [torch.einsum("c,i,j->cij", colours[c], cosines[i], cosines[j]) for c, i, j in entries[:dims]]
    return torch.stack(vectors).float()
