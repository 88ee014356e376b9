"""VQ-VAE-2 (Razavi et al. 2019) as in its public PyTorch port: a coarse and a fine grid of codes.

The names of the modules are those of the published file.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import fill
from hybrid_tokenizer.checkpoints.rename import rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.quantizers import nearest_codes

STATISTICS = ("cluster_size", "embed_avg")
"""What training keeps beside each codebook."""
NEEDED = (
    "enc_b.blocks.0.weight",
    "enc_b.blocks.2.weight",
    "quantize_t.embed",
    "quantize_b.embed",
    "dec.blocks.0.weight",
)


@dataclass
class Vqvae2Config:
    """`channels` of the hidden layers, `residual_channels` inside each of the `residual_blocks`."""

    channels: int = 128
    residual_blocks: int = 2
    residual_channels: int = 32
    codebook_size: int = 512
    codebook_dim: int = 64


class Residual(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, added to the input."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, channels, 1)
        )

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return hidden + self.conv(hidden)


class Stack(nn.Module):
    """Convolutions, residual blocks and transposed convolutions in a row."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*layers)

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d H W"]:
        return self.blocks(hidden)


class Codebook(nn.Module):
    """Codes as columns, as the file has them."""

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(dim, size))

    def codes(self, indices: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """What the decoders read."""
        return rearrange(self.embed.T[indices], "b h w d -> b d h w")

    def lookup(self, features: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        """The nearest codes."""
        flat = rearrange(features, "b d h w -> (b h w) d")
        height, width = features.shape[-2:]
        return rearrange(nearest_codes(flat, self.embed.T), "(b h w) -> b h w", h=height, w=width)


class Vqvae2(nn.Module):
    """Images to a top grid at an eighth and a bottom grid at a quarter of their side, and back."""

    downsample_factor = 8

    def __init__(self, config: Vqvae2Config):
        super().__init__()
        self.config = config
        width, dim, size = config.channels, config.codebook_dim, config.codebook_size

        def residuals() -> list[nn.Module]:
            return [Residual(width, config.residual_channels) for _ in range(config.residual_blocks)] + [nn.ReLU()]

        def halve(inner: int, outer: int) -> nn.Module:
            return nn.Conv2d(inner, outer, 4, stride=2, padding=1)

        def double(inner: int, outer: int) -> nn.Module:
            return nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1)

        def keep(inner: int, outer: int) -> nn.Module:
            return nn.Conv2d(inner, outer, 3, padding=1)

        half = width // 2
        self.enc_b = Stack(halve(3, half), nn.ReLU(), halve(half, width), nn.ReLU(), keep(width, width), *residuals())
        self.enc_t = Stack(halve(width, half), nn.ReLU(), keep(half, width), *residuals())
        self.quantize_conv_t = nn.Conv2d(width, dim, 1)
        self.quantize_t = Codebook(dim, size)
        self.dec_t = Stack(keep(dim, width), *residuals(), double(width, dim))
        self.quantize_conv_b = nn.Conv2d(dim + width, dim, 1)
        self.quantize_b = Codebook(dim, size)
        self.upsample_t = double(dim, dim)
        self.dec = Stack(keep(2 * dim, width), *residuals(), double(width, half), nn.ReLU(), double(half, 3))

    @property
    def codebook_size(self) -> int:
        """Of each of the two codebooks."""
        return self.config.codebook_size

    def features(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b d _ _"], Float[Tensor, "b d _ _"]]:
        """What the two codebooks quantize. The bottom features stand beside what the top codes already say."""
        bottom = self.enc_b(images)
        top = self.quantize_conv_t(self.enc_t(bottom))
        known = self.dec_t(self.quantize_t.codes(self.quantize_t.lookup(top)))
        return top, self.quantize_conv_b(torch.cat([known, bottom], dim=1))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b _ _"], ...]:
        """The coarse grid, then the fine one."""
        top, bottom = self.features(images)
        return self.quantize_t.lookup(top), self.quantize_b.lookup(bottom)

    @torch.no_grad()
    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]:
        """Both grids to images; not clamped."""
        top, bottom = (book.codes(grid) for book, grid in zip((self.quantize_t, self.quantize_b), grids, strict=True))
        return self.dec(torch.cat([self.upsample_t(top), bottom], dim=1))


def build_vqvae2(state: dict[str, Tensor], source: str) -> Vqvae2:
    """VQ-VAE-2 from its checkpoint. The statistics that training keeps beside the codebooks are dropped."""
    absent = [key for key in NEEDED if key not in state]
    if absent:
        raise HybridTokenizerError(
            f"{source} has no {', '.join(absent)}; give the two-level VQ-VAE-2 of the PyTorch port"
        )
    parts = (
        "enc_b",
        "enc_t",
        "quantize_conv_t",
        "quantize_t",
        "dec_t",
        "quantize_conv_b",
        "quantize_b",
        "upsample_t",
        "dec",
    )
    table: dict[str, str | None] = {f"{part}.": f"{part}." for part in parts}
    table |= {f"{book}.{name}": None for book in ("quantize_t", "quantize_b") for name in STATISTICS}
    blocks = sorted(key for key in state if key.startswith("enc_b.blocks.") and key.endswith(".conv.1.weight"))
    dim, size = state["quantize_t.embed"].shape
    config = Vqvae2Config(
        channels=len(state["enc_b.blocks.2.weight"]),
        residual_blocks=len(blocks),
        residual_channels=len(state[blocks[0]]) if blocks else 32,
        codebook_size=size,
        codebook_dim=dim,
    )
    return fill(lambda: Vqvae2(config), rename_keys(state, table, source), source)
