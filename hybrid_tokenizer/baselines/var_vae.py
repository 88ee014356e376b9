"""VAR's VQVAE: a residual quantized at ten scales with one codebook (Tian et al. 2024, algorithms 1 and 2)."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.vqgan import Backbone
from hybrid_tokenizer.checkpoints.files import fill
from hybrid_tokenizer.checkpoints.keys.var import var_to_backbone
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.quantizers import VectorQuantizer

PUBLISHED_SCALES = {
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
"""Grids of 256 and of 512 px."""

Size = tuple[int, int]


class VarVae(Backbone):
    """scales: (h, w) of each scale, coarse to fine. None: the published ones for the image's grid.

    `residuals` are the convolutions that scales share; `residual_ratio` is their weight in the mix with their input.
    """

    def __init__(
        self, config: GuideConfig, num_residuals: int = 4, residual_ratio: float = 0.5, scales: list[Size] | None = None
    ):
        quantizer = VectorQuantizer(config.quantizer.codebook_size, config.quantizer.codebook_dim)
        super().__init__(config, quantizer, kernel_size=3)
        dim = config.quantizer.codebook_dim
        self.residuals = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(num_residuals))
        self.residual_ratio = residual_ratio
        self.scales = scales

    def scale_sizes(self, grid: Size) -> list[Size]:
        """The scales of an image with this grid. Unpublished grids get those of 256 px in proportion."""
        if self.scales is not None:
            if self.scales[-1] != grid:
                raise HybridTokenizerError(
                    f"the last scale {self.scales[-1]} must be the image's grid {grid}; give an image or scales that fit"
                )
            return self.scales
        if grid[0] == grid[1] and grid[0] in PUBLISHED_SCALES:
            return [(side, side) for side in PUBLISHED_SCALES[grid[0]]]
        full = PUBLISHED_SCALES[16][-1]
        return [tuple(max(1, round(side * scale / full)) for side in grid) for scale in PUBLISHED_SCALES[16]]

    def to_full_grid(
        self, codes: Float[Tensor, "b _ _ d"], scale: int, num_scales: int, grid: Size
    ) -> Float[Tensor, "b d h w"]:
        """One scale's term of the sum: upsampled bicubically, then mixed with its convolution."""
        planes = rearrange(codes, "b h w d -> b d h w")
        if tuple(planes.shape[-2:]) != grid:
            planes = F.interpolate(planes, size=grid, mode="bicubic")
        convolution = self.residuals[shared_residual(scale, num_scales, len(self.residuals))]
        return (1 - self.residual_ratio) * planes + self.residual_ratio * convolution(planes)

    def quantize(
        self, features: Float[Tensor, "b h w d"]
    ) -> tuple[Float[Tensor, "b h w d"], tuple[Int[Tensor, "b _ _"], ...]]:
        """The sum over scales, and each scale's indices."""
        grid = (features.shape[1], features.shape[2])
        sizes = self.scale_sizes(grid)
        residual = rearrange(features, "b h w d -> b d h w").float()
        total = torch.zeros_like(residual)
        grids = []
        for scale, size in enumerate(sizes):
            planes = residual if size == grid else F.interpolate(residual, size=size, mode="area")
            codes, indices = self.quantizer.lookup(rearrange(planes, "b d h w -> b h w d"))
            part = self.to_full_grid(codes, scale, len(sizes), grid)
            total, residual = total + part, residual - part
            grids.append(indices)
        return rearrange(total, "b d h w -> b h w d"), tuple(grids)

    def sums(self, grids: tuple[Int[Tensor, "b _ _"], ...], grid: Size) -> list[Float[Tensor, "b h w d"]]:
        """The partial sum after each scale, from indices alone. `grids` may be only the first few."""
        sizes = self.scale_sizes(grid)
        given = [tuple(indices.shape[1:]) for indices in grids]
        if given != sizes[: len(given)] or not given:
            raise HybridTokenizerError(f"grids {given} are not the first scales {sizes} of a {grid[0]}x{grid[1]} grid")
        sums: list[Tensor] = []
        for scale, indices in enumerate(grids):
            part = self.to_full_grid(self.quantizer.codes(indices), scale, len(sizes), grid)
            part = rearrange(part, "b d h w -> b h w d")
            sums.append(sums[-1] + part if sums else part)
        return sums

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b _ _"], ...]:
        """Images to the grids of all scales, coarse to fine."""
        return self.quantize(self.features(images))[1]

    @torch.no_grad()
    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]:
        """All scales' indices to images, clamped to [-1, 1] as the reference does."""
        return self.decode_codes(self.sums(grids, tuple(grids[-1].shape[1:]))[-1]).clamp(-1, 1)


def shared_residual(scale: int, num_scales: int, num_residuals: int) -> int:
    """The convolution that a scale uses: the nearest of ticks spread over 0..1.

    The reference puts four ticks at 1/12, ..., 11/12, and any other number at the middles of equal parts. As there, this is
    computed in float64, and the first one wins a tie.
    """
    margin = 1 / (3 if num_residuals == 4 else 2) / num_residuals
    ticks = np.linspace(margin, 1 - margin, num_residuals)
    return int(np.abs(ticks - scale / max(num_scales - 1, 1)).argmin())


def build_var(
    state: dict[str, Tensor], source: str, scales: list[Size] | None = None, residual_ratio: float = 0.5
) -> VarVae:
    """VAR's VQVAE from its checkpoint."""
    converted, sizes = var_to_backbone(state, source)
    num_residuals = sizes.pop("num_residuals")
    config = GuideConfig.from_dict(sizes)
    return fill(lambda: VarVae(config, num_residuals, residual_ratio, scales), converted, source)
