"""Open-MAGVIT2 (SEED-Voken): lookup-free quantization, one bit per channel. The original MAGVIT-v2 was never released."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.residual import NORM_EPS, NORM_GROUPS, blocks
from hybrid_tokenizer.checkpoints.files import fill
from hybrid_tokenizer.checkpoints.keys.seed_voken import magvit2_to_model
from hybrid_tokenizer.errors import HybridTokenizerError


@dataclass
class Magvit2Config:
    """`channels` runs from the highest resolution down; `num_bits` channels make 2**num_bits codes."""

    channels: list[int]
    layers: int = 4
    num_bits: int = 18

    def __post_init__(self) -> None:
        if not self.channels or any(width % NORM_GROUPS for width in self.channels):
            raise HybridTokenizerError(f"channels={self.channels} must be multiples of {NORM_GROUPS}, at least one")
        if self.layers < 1 or not 1 <= self.num_bits <= 62:
            raise HybridTokenizerError(f"layers={self.layers} and num_bits={self.num_bits} must be 1.. and 1..62")


class Level(nn.Module):
    """The blocks of one resolution, the decoder's adaptive norm before them, and the change to the next resolution."""

    def __init__(self, layers: nn.ModuleList, resample: nn.Module | None, style: nn.Module | None = None):
        super().__init__()
        self.style = style
        self.blocks = layers
        self.resample = resample


class Encoder(nn.Module):
    """No attention; strided convolutions padded on all sides, unlike VQGAN's."""

    def __init__(self, config: Magvit2Config):
        super().__init__()
        widths, count = config.channels, len(config.channels)
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.levels = nn.ModuleList(
            Level(
                blocks([widths[max(i - 1, 0)], *[widths[i]] * config.layers]),
                nn.Conv2d(widths[i], widths[i], 3, stride=2, padding=1) if i < count - 1 else None,
            )
            for i in range(count)
        )
        self.middle = blocks([widths[-1]] * (config.layers + 1))
        self.norm_out = nn.GroupNorm(NORM_GROUPS, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.num_bits, 1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        hidden = self.conv_in(images)
        for level in self.levels:
            for block in level.blocks:
                hidden = block(hidden)
            if level.resample is not None:
                hidden = level.resample(hidden)
        for block in self.middle:
            hidden = block(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class AdaptiveNorm(nn.Module):
    """Group norm. A linear layer on the codes' standard deviation gives its scale, another on their mean its shift."""

    def __init__(self, num_bits: int, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS, affine=False)
        self.gamma = nn.Linear(num_bits, channels)
        self.beta = nn.Linear(num_bits, channels)

    def forward(self, hidden: Float[Tensor, "b c h w"], codes: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b c h w"]:
        flat = rearrange(codes, "b d h w -> b d (h w)")
        scale = self.gamma((flat.var(dim=-1) + NORM_EPS).sqrt())
        shift = self.beta(reduce(flat, "b d n -> b d", "mean"))
        return rearrange(scale, "b c -> b c 1 1") * self.norm(hidden) + rearrange(shift, "b c -> b c 1 1")


class DepthToSpace(nn.Module):
    """Doubles the side. The pixel's position is the slow part of the channels, unlike in `nn.PixelShuffle`."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return rearrange(self.conv(hidden), "b (p q c) h w -> b c (h p) (w q)", p=2, q=2)


class Decoder(nn.Module):
    """From the lowest resolution up. Each level has an adaptive norm on the codes."""

    def __init__(self, config: Magvit2Config):
        super().__init__()
        widths, count = config.channels, len(config.channels)
        self.conv_in = nn.Conv2d(config.num_bits, widths[-1], 3, padding=1)
        self.middle = blocks([widths[-1]] * (config.layers + 1))
        self.levels = nn.ModuleList(
            Level(
                blocks([widths[min(i + 1, count - 1)], *[widths[i]] * config.layers]),
                DepthToSpace(widths[i]) if i > 0 else None,
                AdaptiveNorm(config.num_bits, widths[min(i + 1, count - 1)]),
            )
            for i in range(count)
        )
        self.norm_out = nn.GroupNorm(NORM_GROUPS, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        hidden = self.conv_in(codes)
        for block in self.middle:
            hidden = block(hidden)
        for level in reversed(self.levels):
            hidden = level.style(hidden, codes)
            for block in level.blocks:
                hidden = block(hidden)
            if level.resample is not None:
                hidden = level.resample(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class Magvit2(nn.Module):
    """Images to the signs of features, and back."""

    def __init__(self, config: Magvit2Config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def codebook_size(self) -> int:
        """2**num_bits."""
        return 2**self.config.num_bits

    @property
    def downsample_factor(self) -> int:
        """Image pixels per token, along a side."""
        return 2 ** (len(self.config.channels) - 1)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b h w"], ...]:
        """Images to one grid of indices."""
        return (signs_to_indices(self.encoder(images)),)

    @torch.no_grad()
    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]:
        """Indices alone to images; not clamped."""
        (indices,) = grids
        return self.decoder(indices_to_signs(indices, self.config.num_bits))


def signs_to_indices(features: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
    """Bit i of an index is 1 where channel i is above 0; channel 0 is the least significant."""
    powers = 2 ** torch.arange(features.shape[1], device=features.device)
    return ((features > 0).long() * rearrange(powers, "d -> d 1 1")).sum(dim=1)


def indices_to_signs(indices: Int[Tensor, "b h w"], num_bits: int) -> Float[Tensor, "b d h w"]:
    """+1 where the bit is set and -1 where not."""
    powers = rearrange(torch.arange(num_bits, device=indices.device), "d -> d 1 1")
    return ((rearrange(indices, "b h w -> b 1 h w") >> powers) & 1).float() * 2 - 1


def build_magvit2(state: dict[str, Tensor], source: str) -> Magvit2:
    """Open-MAGVIT2 from its checkpoint, with the averaged weights where the file has them."""
    converted, sizes = magvit2_to_model(state, source)
    return fill(lambda: Magvit2(Magvit2Config(**sizes)), converted, source)
