"""Damages to a guide: tokens replaced at random, or the guide image bent or rotated. Each image has its own generator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

CONTROL_POINTS = 5  # per side: bends of about a quarter of the image


def replace_tokens(
    grids: Sequence[Int[Tensor, "b _ _"]], share: float, codebook_size: int, generators: Sequence[torch.Generator]
) -> tuple[Int[Tensor, "b _ _"], ...]:
    """Replace `share` of each image's tokens, rounded to a whole number and drawn over all its grids, by other codes."""
    lengths = [grid.shape[1] * grid.shape[2] for grid in grids]
    flat = torch.cat([grid.flatten(1) for grid in grids], dim=1).clone()
    count = round(share * flat.shape[1])
    for row, generator in zip(flat, generators, strict=True):
        places = torch.randperm(len(row), generator=generator)[:count].to(row.device)
        steps = torch.randint(1, codebook_size, (count,), generator=generator).to(row)
        row[places] = (row[places] + steps) % codebook_size
    parts = flat.split(lengths, dim=1)
    return tuple(part.reshape(grid.shape) for part, grid in zip(parts, grids, strict=True))


def bend(
    images: Float[Tensor, "b 3 h w"], amplitude: float, generators: Sequence[torch.Generator]
) -> Float[Tensor, "b 3 h w"]:
    """A smooth random displacement, at its longest `amplitude` of the shorter side. The border is reflected."""
    height, width = images.shape[-2:]
    points = torch.stack([torch.randn(2, CONTROL_POINTS, CONTROL_POINTS, generator=one) for one in generators])
    field = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
    longest = field.square().sum(dim=1).sqrt().amax(dim=(1, 2))
    pixels = field / rearrange(longest, "b -> b 1 1 1") * amplitude * min(height, width)
    # the coordinates of grid_sample span 2 over each side
    offsets = rearrange(pixels, "b c h w -> b h w c") * 2 / torch.tensor([width, height])
    return _sample(images, _identity_grid(images) + offsets.to(images))


def turn(images: Float[Tensor, "b 3 h w"], degrees: float) -> Float[Tensor, "b 3 h w"]:
    """Rotate about the centre, counter-clockwise for positive `degrees`. The border is reflected."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    cos, sin, ratio = angle.cos(), angle.sin(), height / width
    # where a pixel comes from, in coordinates that span 2 over each side; `ratio` keeps pixels square
    rows = torch.stack([torch.stack([cos, -sin * ratio]), torch.stack([sin / ratio, cos])]).to(images)
    return _sample(images, _identity_grid(images) @ rows.T)


def _identity_grid(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w 2"]:
    unit = torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(len(images), -1, -1)
    return F.affine_grid(unit, list(images.shape), align_corners=False)


def _sample(images: Float[Tensor, "b 3 h w"], grid: Float[Tensor, "b h w 2"]) -> Float[Tensor, "b 3 h w"]:
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
