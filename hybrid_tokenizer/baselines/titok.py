"""TiTok: an image as a short sequence of tokens (Yu et al. 2024), of both generations.

Legacy models predict a distribution over MaskGIT's codes, and MaskGIT's VQGAN decodes the mean code. Newer models predict
pixels.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines.residual import NORM_EPS, NORM_GROUPS, blocks
from hybrid_tokenizer.checkpoints.files import fill
from hybrid_tokenizer.checkpoints.keys.titok import titok_to_model
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import to_unit
from hybrid_tokenizer.quantizers import nearest_codes


@dataclass
class TiTokConfig:
    """`grid` x `grid` patches of `patch_size`, and `num_latents` tokens. `pixel_*`: MaskGIT's decoder in legacy models.

    unit_codes: features and codes are normalised, for lookup and decoding.
    """

    grid: int
    patch_size: int
    num_latents: int
    encoder_width: int
    encoder_layers: int
    encoder_heads: int
    decoder_width: int
    decoder_layers: int
    decoder_heads: int
    codebook_size: int
    codebook_dim: int
    legacy: bool
    unit_codes: bool
    pixel_codes: int = 1024
    pixel_dim: int = 256
    pixel_channels: list[int] = field(default_factory=lambda: [128, 128, 256, 256, 512])
    pixel_layers: int = 2

    def __post_init__(self) -> None:
        for name, width, heads in (
            ("encoder_heads", self.encoder_width, self.encoder_heads),
            ("decoder_heads", self.decoder_width, self.decoder_heads),
        ):
            if width % heads:
                raise HybridTokenizerError(f"{name}={heads} must divide the width {width}; choose a divisor")
        if self.legacy and self.patch_size != 2 ** (len(self.pixel_channels) - 1):
            raise HybridTokenizerError(
                f"pixel_channels={self.pixel_channels} enlarge {2 ** (len(self.pixel_channels) - 1)} times, "
                f"patch_size is {self.patch_size}; they must agree"
            )

    @property
    def image_size(self) -> int:
        """The side of the model's images."""
        return self.grid * self.patch_size


def transformer(width: int, heads: int, layers: int) -> nn.ModuleList:
    """CLIP's pre-norm blocks: GELU, and an MLP 4 times as wide."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(layers)
    )


class Encoder(nn.Module):
    """A transformer over patches, a class token and latent tokens. Its outputs at the latent tokens are the features."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        width = config.encoder_width
        self.legacy = config.legacy
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.class_embed = nn.Parameter(torch.zeros(1, width))
        self.position_embeds = nn.Parameter(torch.zeros(config.grid**2 + 1, width))
        self.queries = nn.Parameter(torch.zeros(config.num_latents, width))
        self.query_position_embeds = nn.Parameter(torch.zeros(config.num_latents, width))
        self.norm_in = nn.LayerNorm(width)
        self.layers = transformer(width, config.encoder_heads, config.encoder_layers)
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Conv2d(width, config.codebook_dim, 1)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n d"]:
        """Images in [0, 1] to features."""
        patches = rearrange(self.patch_embed(images), "b d h w -> b (h w) d")
        patches = torch.cat([self.class_embed.expand(len(images), 1, -1), patches], dim=1) + self.position_embeds
        queries = repeat(self.queries + self.query_position_embeds, "n d -> b n d", b=len(images))
        hidden = self.norm_in(torch.cat([patches, queries], dim=1))
        for layer in self.layers:
            hidden = layer(hidden)
        latents = self.norm_out(hidden[:, patches.shape[1] :])
        if self.legacy:
            # the reference reads the n x d block of numbers as d x n without transposing it; its weights expect that
            planes = latents.reshape(len(latents), latents.shape[2], latents.shape[1], 1)
        else:
            planes = rearrange(latents, "b n d -> b d n 1")
        return rearrange(self.projection(planes), "b d n 1 -> b n d")


class Decoder(nn.Module):
    """A transformer over codes and one mask token per patch. Its outputs at the mask tokens become the image."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        width = config.decoder_width
        self.grid, self.patch_size, self.legacy = config.grid, config.patch_size, config.legacy
        self.embed = nn.Linear(config.codebook_dim, width)
        self.class_embed = nn.Parameter(torch.zeros(1, width))
        self.mask_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeds = nn.Parameter(torch.zeros(config.grid**2 + 1, width))
        self.query_position_embeds = nn.Parameter(torch.zeros(config.num_latents, width))
        self.norm_in = nn.LayerNorm(width)
        self.layers = transformer(width, config.decoder_heads, config.decoder_layers)
        self.norm_out = nn.LayerNorm(width)
        if config.legacy:
            self.head = nn.Sequential(
                nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, config.pixel_codes, 1)
            )
        else:
            self.head = nn.Sequential(nn.Conv2d(width, 3 * config.patch_size**2, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, codes: Float[Tensor, "b n d"]) -> Float[Tensor, "b c h w"]:
        """Logits over MaskGIT's codes (legacy), or images in about [0, 1]."""
        masks = self.mask_embed.expand(len(codes), self.grid**2, -1)
        patches = torch.cat([self.class_embed.expand(len(codes), 1, -1), masks], dim=1) + self.position_embeds
        latents = self.embed(codes) + self.query_position_embeds
        hidden = self.norm_in(torch.cat([patches, latents], dim=1))
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.norm_out(hidden[:, 1 : 1 + self.grid**2])
        planes = self.head(rearrange(hidden, "b (h w) d -> b d h w", h=self.grid))
        if self.legacy:
            return planes
        p = self.patch_size
        return self.conv_out(rearrange(planes, "b (p q c) h w -> b c (h p) (w q)", p=p, q=p))


class PixelLevel(nn.Module):
    """The blocks of one resolution, and the convolution after upsampling."""

    def __init__(self, layers: nn.ModuleList, resample: nn.Conv2d | None):
        super().__init__()
        self.blocks = layers
        self.resample = resample


class PixelDecoder(nn.Module):
    """MaskGIT's VQGAN decoder and its codebook."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        widths, count = config.pixel_channels, len(config.pixel_channels)
        self.embedding = nn.Embedding(config.pixel_codes, config.pixel_dim)
        self.conv_in = nn.Conv2d(config.pixel_dim, widths[-1], 3, padding=1)
        self.middle = blocks([widths[-1]] * (config.pixel_layers + 1), shortcut_of_output=True)
        self.levels = nn.ModuleList(
            PixelLevel(
                blocks([widths[min(i + 1, count - 1)], *[widths[i]] * config.pixel_layers], shortcut_of_output=True),
                nn.Conv2d(widths[i], widths[i], 3, padding=1) if i > 0 else None,
            )
            for i in range(count)
        )
        self.norm_out = nn.GroupNorm(NORM_GROUPS, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b 3 H W"]:
        """The image of the mean code under the logits' distribution."""
        mean = torch.einsum("bkhw,kd->bdhw", logits.softmax(dim=1), self.embedding.weight)
        hidden = self.conv_in(mean)
        for block in self.middle:
            hidden = block(hidden)
        for level in reversed(self.levels):
            for block in level.blocks:
                hidden = block(hidden)
            if level.resample is not None:
                hidden = level.resample(F.interpolate(hidden, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(hidden)))


class TokenCodebook(nn.Module):
    """The nearest code, among unit vectors with `unit_codes`."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        self.unit_codes = config.unit_codes

    def place(self, vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Vectors in the space where distances are taken."""
        return F.normalize(vectors, dim=-1) if self.unit_codes else vectors

    def codes(self, indices: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """What the decoder reads."""
        return self.place(F.embedding(indices, self.embedding.weight))

    def lookup(self, features: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n d"], Int[Tensor, "b n"]]:
        """Codes and indices."""
        flat = self.place(features).reshape(-1, features.shape[-1])
        indices = nearest_codes(flat, self.place(self.embedding.weight)).reshape(features.shape[:-1])
        return self.codes(indices), indices


class TiTok(nn.Module):
    """Images of one size to `num_latents` tokens, and back."""

    def __init__(self, config: TiTokConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = TokenCodebook(config)
        self.decoder = Decoder(config)
        self.pixels = PixelDecoder(config) if config.legacy else None

    @property
    def codebook_size(self) -> int:
        """Codes in the codebook."""
        return self.config.codebook_size

    @property
    def downsample_factor(self) -> int:
        """Image pixels per patch, along a side."""
        return self.config.patch_size

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        """What the codebook quantizes."""
        side = self.config.image_size
        if tuple(images.shape[-2:]) != (side, side):
            raise HybridTokenizerError(
                f"image size {images.shape[-2]}x{images.shape[-1]} must be {side}x{side} for this TiTok; resize it"
            )
        return self.encoder(to_unit(images))

    def decode_codes(self, codes: Float[Tensor, "b n d"]) -> Float[Tensor, "b 3 H W"]:
        """Codes to images; not clamped."""
        decoded = self.decoder(codes)
        return (decoded if self.pixels is None else self.pixels(decoded)) * 2 - 1

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b 1 n"], ...]:
        """Images to one row of indices."""
        return (rearrange(self.quantizer.lookup(self.features(images))[1], "b n -> b 1 n"),)

    @torch.no_grad()
    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]:
        """Indices alone to images; not clamped."""
        (indices,) = grids
        return self.decode_codes(self.quantizer.codes(rearrange(indices, "b 1 n -> b n")))


def read_settings(values: dict[str, Any], source: str) -> dict[str, bool]:
    """Options of `build_titok` that a TiTok `config.json` states and the weights do not show."""
    for name in ("model", "vq_model", "use_l2_norm"):
        if not isinstance(values, dict) or name not in values:
            return {}
        values = values[name]
    if not isinstance(values, bool):
        raise HybridTokenizerError(f"{source} has use_l2_norm={values!r}, expected true or false; download it again")
    return {"unit_codes": values}


def build_titok(
    state: dict[str, Tensor], source: str, heads: int | None = None, unit_codes: bool | None = None
) -> TiTok:
    """TiTok from its checkpoint. What the weights do not show is as in the published models unless given."""
    converted, sizes = titok_to_model(state, source)
    if heads is not None:
        sizes |= {"encoder_heads": heads, "decoder_heads": heads}
    if unit_codes is not None:
        sizes["unit_codes"] = unit_codes
    return fill(lambda: TiTok(TiTokConfig(**sizes)), converted, source)
