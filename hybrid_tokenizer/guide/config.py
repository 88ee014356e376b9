"""Configuration of Branch I. Derived sizes are properties; a contradictory configuration raises when it is built."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hybrid_tokenizer.checkpoints.configs import from_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.quantizers.config import QuantizerConfig

STEMS = ("none", "residual_front", "unshuffle", "appended")
# Codes of the other kinds have a fixed length, so they cannot represent a shrinking residual.
NESTED_KINDS = ("vq", "ema", "simvq")
SCALE_INTERPOLATIONS = ("bicubic", "bilinear", "cosine")
PAPER_GUIDE_SIZES = (128, 64, 32, 16)


@dataclass
class GuideConfig:
    """Configuration of Branch I. Lists over levels run from the highest resolution to the lowest, for the decoder as well.

    The encoder's levels and the stem together reduce the image to the token grid. The stem contributes `stem_factor`:
    `residual_front` (area resize plus a learned residual), `unshuffle` (pixel unshuffle), `appended` (further levels
    below the trunk, as wide as its last) or `none`. The decoder's levels upsample the grid to the guide image.
    `image_size` is the training size and the default; any size with multiples of `downsample_factor` works.
    `linear_path` adds the networks' outputs to a transform code of the resized image (`dct.py`), which helps training
    from scratch. `refiner_blocks` blocks of `refiner_channels` refine the guide image. Published weights have neither.
    `scale_interpolation` upsamples a coarse scale's codes to the full grid. Each code is a mean, interpolated smoothly
    (VAR), or with `cosine` the coefficients of a wider block (`dct.CosineScale`).
    """

    image_size: int = 256
    """Side in pixels in training, and the default. Any size in multiples of the downsample factor works."""
    encoder_channels: list[int] = field(default_factory=lambda: [128, 256, 256, 512])
    """Width of each of the encoder's levels."""
    decoder_channels: list[int] = field(default_factory=lambda: [128, 256, 256, 512])
    """Width of each of the decoder's levels."""
    encoder_layers: int = 2
    """Residual blocks of each of the encoder's levels."""
    decoder_layers: int = 2
    """Residual blocks of each of the decoder's levels. 0 leaves the upsampling alone."""
    encoder_attention: list[int] = field(default_factory=lambda: [3])
    """Levels of the encoder with self-attention, counted from 0."""
    decoder_attention: list[int] = field(default_factory=lambda: [3])
    """Levels of the decoder with self-attention, counted from 0."""
    z_channels: int = 4
    """Channels between the networks and the codebook's projections."""
    norm_type: str = "spatial"
    """"spatial": norms conditioned on the codes (MoVQ). "group": plain group norms (VQGAN)."""
    norm_num_groups: int = 32
    """Groups of each group norm. Spatial norms have 32."""
    stem: str = "none"
    """What reduces the image before the encoder: "none", "residual_front", "unshuffle" or "appended"."""
    stem_factor: int = 1
    """By how much the stem reduces the image, a power of 2."""
    stem_channels: int = 64
    """Width of the stem "residual_front"."""
    linear_path: bool = False
    """Add the networks' outputs to a transform code of the resized image."""
    refiner_blocks: int = 0
    """Blocks that refine the guide image after the decoder. 0: none."""
    refiner_channels: int = 64
    """Width of those blocks."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """The codebook."""
    guide_scales: list[int] | None = None
    """Sides of a nested guide's grids, coarse to fine. null: one grid."""
    scale_interpolation: str = "bicubic"
    """How a coarse grid's codes are upsampled to the full grid: "bicubic", "bilinear" or "cosine"."""
    prefix_dropout: float = 0.5
    """Share of training images that keep only their first grids, so that every prefix decodes."""

    def __post_init__(self) -> None:
        for name in ("image_size", "z_channels", "norm_num_groups", "stem_channels", "refiner_channels"):
            if getattr(self, name) < 1:
                raise HybridTokenizerError(f"{name}={getattr(self, name)} must be at least 1")
        if self.norm_type not in ("spatial", "group"):
            raise HybridTokenizerError(
                f"norm_type={self.norm_type!r} is unknown; use 'spatial' (MoVQ) or 'group' (VQGAN)"
            )
        if self.stem not in STEMS:
            raise HybridTokenizerError(f"stem={self.stem!r} is unknown; use one of {', '.join(STEMS)}")
        if self.stem_factor < 1 or self.stem_factor & (self.stem_factor - 1):
            raise HybridTokenizerError(f"stem_factor={self.stem_factor} must be a power of 2, e.g. 1, 2, 4, 8 or 16")
        if (self.stem == "none") != (self.stem_factor == 1):
            raise HybridTokenizerError(
                f"stem={self.stem!r} with stem_factor={self.stem_factor} is contradictory; "
                "use stem='none' with stem_factor=1, or another stem with 2, 4, ..."
            )
        self._check_levels("encoder", self.encoder_channels, self.encoder_attention, self.encoder_layers)
        self._check_levels("decoder", self.decoder_channels, self.decoder_attention, self.decoder_layers)
        if self.norm_type == "spatial":
            if self.norm_num_groups != 32 or any(c % 32 for c in self.decoder_channels):
                raise HybridTokenizerError(
                    f"spatial norms have 32 groups; norm_num_groups={self.norm_num_groups} and "
                    f"decoder_channels={self.decoder_channels} must be 32 and multiples of 32, or use norm_type='group'"
                )
            if self.z_channels != self.quantizer.codebook_dim:
                raise HybridTokenizerError(
                    f"z_channels={self.z_channels} must equal codebook_dim={self.quantizer.codebook_dim} under spatial norms, "
                    "which are conditioned on the codes; set them equal or use norm_type='group'"
                )
        if self.image_size % self.downsample_factor:
            raise HybridTokenizerError(
                f"image_size={self.image_size} must be a multiple of {self.downsample_factor}, "
                f"e.g. {nearest_multiple(self.image_size, self.downsample_factor)}"
            )
        if self.scale_interpolation not in SCALE_INTERPOLATIONS:
            raise HybridTokenizerError(
                f"scale_interpolation={self.scale_interpolation!r} is unknown; use one of {', '.join(SCALE_INTERPOLATIONS)}"
            )
        if self.scale_interpolation == "cosine" and not (
            self.linear_path
            and self.guide_scales
            and all(self.guide_scales[-1] % scale == 0 for scale in self.guide_scales)
        ):
            raise HybridTokenizerError(
                f"scale_interpolation='cosine' with linear_path={self.linear_path} and guide_scales={self.guide_scales}: it is "
                "for a nested guide on the linear path whose scales divide the last one; use 'bicubic'"
            )
        if not 0 <= self.prefix_dropout <= 1:
            raise HybridTokenizerError(f"prefix_dropout={self.prefix_dropout} must be a probability in [0, 1]")
        if self.refiner_blocks < 0 or (self.refiner_blocks and len(self.decoder_channels) < 2):
            raise HybridTokenizerError(
                f"refiner_blocks={self.refiner_blocks} must be at least 0, and needs a decoder that upsamples; use 0"
            )
        if self.guide_scales is not None:
            scales = list(self.guide_scales)
            if not scales or scales[0] < 1 or any(a >= b for a, b in pairwise(scales)):
                raise HybridTokenizerError(f"guide_scales={scales} must be positive and increasing, e.g. [2, 4, 8, 16]")
            if self.quantizer.kind not in NESTED_KINDS:
                raise HybridTokenizerError(
                    f"guide_scales need a quantizer kind of {', '.join(NESTED_KINDS)}; got {self.quantizer.kind!r}"
                )

    def _check_levels(self, name: str, channels: list[int], attention: list[int], layers: int) -> None:
        if not channels or layers < 1 - (name == "decoder"):
            raise HybridTokenizerError(
                f"{name}_channels={channels} and {name}_layers={layers} need at least one level and layer"
            )
        if any(c < 1 or c % self.norm_num_groups for c in channels):
            raise HybridTokenizerError(
                f"{name}_channels={channels} must be multiples of norm_num_groups={self.norm_num_groups}; change one of them"
            )
        if any(not 0 <= level < len(channels) for level in attention):
            raise HybridTokenizerError(
                f"{name}_attention={attention} must lie in 0..{len(channels) - 1}, the {name}'s levels"
            )

    @property
    def downsample_factor(self) -> int:
        """Image pixels per token along each side."""
        return self.stem_factor * 2 ** (len(self.encoder_channels) - 1)

    @property
    def upsample_factor(self) -> int:
        """Guide pixels per token along each side."""
        return 2 ** (len(self.decoder_channels) - 1)

    @property
    def guide_size(self) -> int:
        """Side of the guide image at `image_size`."""
        return self.image_size // self.downsample_factor * self.upsample_factor

    @property
    def num_tokens(self) -> int:
        """Tokens per image at `image_size`, over all scales."""
        return sum(h * w for h, w in self.scale_sizes(self.grid_size((self.image_size, self.image_size))))

    @property
    def bits(self) -> float:
        """Bits per image at `image_size`."""
        return self.num_tokens * math.log2(self.quantizer.codebook_size)

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The token grid (h, w) of an image of (height, width). Raises when a side is not a multiple of the factor."""
        height, width = image_size
        factor = self.downsample_factor
        if height % factor or width % factor or height < 1 or width < 1:
            raise HybridTokenizerError(
                f"image size {height}x{width} (height x width) must be multiples of {factor}; "
                f"resize to {nearest_multiple(height, factor)}x{nearest_multiple(width, factor)}"
            )
        return height // factor, width // factor

    def scale_sizes(self, grid_size: tuple[int, int]) -> list[tuple[int, int]]:
        """The grids from coarse to fine; the last is `grid_size`. Without `guide_scales` there is one grid."""
        if self.guide_scales is None:
            return [grid_size]
        full = self.guide_scales[-1]
        return [tuple(max(1, round(side * scale / full)) for side in grid_size) for scale in self.guide_scales]

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the guide configuration") -> "GuideConfig":
        """The configuration in a `config.json`. Raises on unknown names and on values of the wrong type."""
        return from_json(cls, values, source)

    @classmethod
    def tiny(cls, guide_size: int = 128, nested: bool = False) -> "GuideConfig":
        """The embedded preset at 256 px, small enough to train on a CPU. A `guide_size` of 128, 64, 32 or 16 gives 256,
        64, 16 or 4 tokens."""
        return cls(
            image_size=256,
            encoder_channels=[32, 64, 128, 192],  # wide where it is cheap: most parameters act on the token grid
            decoder_channels=[32, 64, 128, 192],
            encoder_layers=1,
            decoder_layers=0,
            encoder_attention=[],
            decoder_attention=[],
            z_channels=8,
            norm_type="group",
            # 32 groups of 32 channels would normalise each channel separately. That removes the mean colour and
            # takes twice as long.
            norm_num_groups=4,
            stem="unshuffle",
            stem_factor=stem_factor_of(256, guide_size),
            linear_path=True,
            refiner_blocks=4,
            # the VQ-VAE paper's commitment weight: at 1 the features follow the codes and stop moving
            quantizer=QuantizerConfig(kind="ema", codebook_size=16384, codebook_dim=8, commitment_weight=0.25),
            guide_scales=[2, 4, 8, 16] if nested else None,
            scale_interpolation="cosine" if nested else "bicubic",
        )

    @classmethod
    def sd15(cls, guide_size: int = 128, image_size: int = 256, nested: bool = False) -> "GuideConfig":
        """The paper's guide: MoVQGAN 270M behind a residual front."""
        factor = stem_factor_of(image_size, guide_size)
        return cls.movqgan(
            "270M", image_size=image_size, stem="residual_front" if factor > 1 else "none", stem_factor=factor,
            guide_scales=[2, 4, 8, 16] if nested else None,
        )  # fmt: skip

    @classmethod
    def movqgan(cls, size: str = "270M", **changes: Any) -> "GuideConfig":
        """MoVQGAN's published sizes: 67M, 102M and 270M (f8, 16384 codes of width 4). `changes` override further fields."""
        sizes = {"67M": (128, 2), "102M": (128, 4), "270M": (256, 2)}
        if size not in sizes:
            raise HybridTokenizerError(f"MoVQGAN size {size!r} is unknown; use one of {', '.join(sizes)}")
        width, layers = sizes[size]
        channels = [width, 2 * width, 2 * width, 4 * width]
        return cls(
            encoder_channels=channels,
            decoder_channels=list(channels),
            encoder_layers=layers,
            decoder_layers=layers,
            **changes,
        )


def nearest_multiple(value: int, factor: int) -> int:
    """The multiple of `factor` nearest to `value`, at least one of it."""
    return max(1, round(value / factor)) * factor


def stem_factor_of(image_size: int, guide_size: int) -> int:
    """The factor that the stem must contribute beside an f8 trunk, so that an image gives a guide of `guide_size`."""
    if guide_size < 8 or guide_size % 8 or image_size % guide_size:
        raise HybridTokenizerError(
            f"guide_size={guide_size} must be a multiple of 8 that divides image_size={image_size}; "
            f"use one of {', '.join(map(str, PAPER_GUIDE_SIZES))}"
        )
    return image_size // guide_size
