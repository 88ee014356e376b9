"""OmniTokenizer (Wang et al. 2024) in its image mode: a transformer over patches of one frame.

The temporal half of the model sees a single frame. Its attention is then the value of that frame, and its causal position
convolution reads the last of its three slices, so only those weights are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import fill
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.quantizers import nearest_codes

ATTENTION_SCALE = 8
THETA = 10_000
DROPPED = (
    "image_discriminator.", "video_discriminator.", "perceptual_model.", "encoder.to_patch_emb.", "decoder.to_pixels.",
    "codebook.N", "codebook.z_avg", "codebook.codebook_usage",
)  # fmt: skip
"""Losses, statistics of training, and the patches of further frames."""
NEEDED = (
    "encoder.to_patch_emb_first_frame.2.weight", "pre_vq_conv.1.weight", "post_vq_conv.1.weight", "codebook.embeddings",
    "decoder.to_pixels_first_frame.0.weight",
)  # fmt: skip


@dataclass
class OmniConfig:
    """Square images of `image_size`. A letter of `encoder` and `decoder` is a spatial layer: t attends to all patches, w to
    those of its window."""

    width: int = 512
    heads: int = 8
    head_width: int = 64
    encoder: str = "ttww"
    decoder: str = "tttt"
    temporal_layers: list[int] = field(default_factory=lambda: [4, 4])
    """Of the encoder and of the decoder."""
    hidden: int = 1365
    """Width of the feed-forward layers."""
    window: int = 8
    patch_size: int = 8
    image_size: int = 256
    codebook_size: int = 8192
    codebook_dim: int = 8

    def __post_init__(self) -> None:
        grid = self.image_size // self.patch_size
        if self.image_size % self.patch_size or ("w" in self.encoder + self.decoder and grid % self.window):
            raise HybridTokenizerError(
                f"image_size={self.image_size} gives no whole windows of {self.window} patches of {self.patch_size} pixels; "
                f"use a multiple of {self.window * self.patch_size}"
            )


class Norm(nn.Module):
    """Layer norm whose shift the published models keep as a buffer of zeros."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n d"]:
        return F.layer_norm(hidden, hidden.shape[-1:], self.gamma, self.beta)


class FeedForward(nn.Module):
    """Norm, two projections of which one gates the other, and a projection back."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        values, gate = self.up(self.norm(hidden)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * values)


class Position(nn.Module):
    """The slice of the position convolution that a single frame meets: 3x3 in space, one filter per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.dsconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        side = round(hidden.shape[1] ** 0.5)
        planes = self.dsconv(rearrange(hidden, "b (h w) d -> b d h w", h=side))
        return rearrange(planes, "b d h w -> b (h w) d")


class Attention(nn.Module):
    """Cosine attention with rotary positions. Keys and values come from the input before its norm, as in the reference."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.norm = Norm(config.width)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(config.head_width))
        self.k_scale = nn.Parameter(torch.ones(config.head_width))
        self.to_out = nn.Linear(inner, config.width, bias=False)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        parts = (self.to_q(self.norm(hidden)), *self.to_kv(hidden).chunk(2, dim=-1))
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        turns = rotations(hidden.shape[1], q)
        q = F.normalize(rotate(q, turns), dim=-1) * self.q_scale
        k = F.normalize(rotate(k, turns), dim=-1) * self.k_scale
        out = F.scaled_dot_product_attention(q, k, v, scale=ATTENTION_SCALE)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class WindowAttention(nn.Module):
    """Attention inside square windows, with a learned bias for each offset."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.heads, self.window = config.heads, config.window
        self.norm = Norm(config.width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * config.window - 1) ** 2, config.heads))
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        side, window = round(hidden.shape[1] ** 0.5), self.window
        windows = rearrange(self.norm(hidden), "b (y p x q) d -> (b y x) (p q) d", x=side // window, p=window, q=window)
        q, k, v = rearrange(self.qkv(windows), "b n (k h d) -> k b h n d", k=3, h=self.heads)
        bias = rearrange(self.relative_position_bias_table[offsets(window, hidden.device)], "i j h -> h i j")
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        out = self.proj(rearrange(out, "b h n d -> b n (h d)"))
        return rearrange(out, "(b y x) (p q) d -> b (y p x q) d", y=side // window, x=side // window, p=window)


class Layer(nn.Module):
    """Position (not before windows), attention and feed-forward, each added to its input."""

    def __init__(self, config: OmniConfig, kind: str):
        super().__init__()
        self.position = None if kind == "w" else Position(config.width)
        self.attention = WindowAttention(config) if kind == "w" else Attention(config)
        self.feed = FeedForward(config)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.position is not None:
            hidden = hidden + self.position(hidden)
        hidden = hidden + self.attention(hidden)
        return hidden + self.feed(hidden)


class TemporalLayer(nn.Module):
    """The same for a single frame, whose attention is its own value."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        inner = config.heads * config.head_width
        self.position = Position(config.width)
        self.value = nn.Linear(config.width, inner, bias=False)
        self.to_out = nn.Linear(inner, config.width, bias=False)
        self.feed = FeedForward(config)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        hidden = hidden + self.position(hidden)
        hidden = hidden + self.to_out(self.value(hidden))
        return hidden + self.feed(hidden)


class Transformer(nn.Module):
    """Layers and a norm."""

    def __init__(self, config: OmniConfig, layers: Iterator[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm_out = Norm(config.width)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm_out(hidden)


class OmniTokenizer(nn.Module):
    """Images of one size to one grid of indices, and back."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.config = config
        pixels, width, dim = 3 * config.patch_size**2, config.width, config.codebook_dim
        self.embed = nn.Sequential(nn.LayerNorm(pixels), nn.Linear(pixels, width), nn.LayerNorm(width))
        self.encoder_space = Transformer(config, (Layer(config, kind) for kind in config.encoder))
        self.encoder_time = Transformer(config, (TemporalLayer(config) for _ in range(config.temporal_layers[0])))
        self.to_codes = nn.Linear(width, dim)
        self.codebook = nn.Embedding(config.codebook_size, dim)
        self.from_codes = nn.Linear(dim, width)
        self.decoder_time = Transformer(config, (TemporalLayer(config) for _ in range(config.temporal_layers[1])))
        self.decoder_space = Transformer(config, (Layer(config, kind) for kind in config.decoder))
        self.to_pixels = nn.Linear(width, pixels)

    @property
    def codebook_size(self) -> int:
        """Codes in the codebook."""
        return self.config.codebook_size

    @property
    def downsample_factor(self) -> int:
        """Image pixels per token, along a side."""
        return self.config.patch_size

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
        """What the codebook quantizes: unit vectors."""
        side, p = self.config.image_size, self.config.patch_size
        if tuple(images.shape[-2:]) != (side, side):
            raise HybridTokenizerError(
                f"image size {images.shape[-2]}x{images.shape[-1]} must be {side}x{side} for this OmniTokenizer; resize it"
            )
        patches = rearrange(images / 2, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)  # its pixels lie in [-0.5, 0.5]
        hidden = self.encoder_time(self.encoder_space(self.embed(patches)))
        return F.normalize(self.to_codes(hidden), dim=-1)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b h w"], ...]:
        """Images to one grid of indices."""
        flat = rearrange(self.features(images), "b n d -> (b n) d")
        side = self.config.image_size // self.config.patch_size
        return (rearrange(nearest_codes(flat, self.codebook.weight), "(b h w) -> b h w", h=side, w=side),)

    @torch.no_grad()
    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]:
        """Indices alone to images; not clamped."""
        (indices,) = grids
        codes = F.embedding(rearrange(indices, "b h w -> b (h w)"), self.codebook.weight)
        hidden = self.decoder_space(self.decoder_time(self.from_codes(codes)))
        p = self.config.patch_size
        patches = self.to_pixels(hidden)
        return 2 * rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=indices.shape[1], p=p, q=p)


def rotations(count: int, vectors: Float[Tensor, "b h n d"]) -> Tensor:
    """Unit complex numbers for `count` patches of a square, in the precision of `vectors`, at least fp32: column and row
    take turns."""
    side, width, device = round(count**0.5), vectors.shape[-1], vectors.device
    places = torch.arange(count, device=device)
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    rates = 1 / THETA ** (torch.arange(0, width, 4, device=device, dtype=dtype) / width)
    angles = torch.stack([torch.outer(places % side, rates), torch.outer(places // side, rates)], dim=-1).flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(vectors: Float[Tensor, "b h n d"], turns: Tensor) -> Float[Tensor, "b h n d"]:
    """Turn each pair of neighbouring channels."""
    pairs = torch.view_as_complex(
        rearrange(vectors.to(turns.real.dtype), "b h n (d two) -> b h n d two", two=2).contiguous()
    )
    return torch.view_as_real(pairs * turns).flatten(-2).to(vectors.dtype)


def offsets(window: int, device: torch.device) -> Int[Tensor, "n n"]:
    """Row of the bias table for each pair of positions in a window."""
    line = torch.arange(window, device=device)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
    apart = places[:, None] - places[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def build_omnitokenizer(state: dict[str, Tensor], source: str, **sizes: Any) -> OmniTokenizer:
    """OmniTokenizer from its checkpoint. `sizes` are fields of `OmniConfig` that weights do not show, as published."""
    absent = [key for key in NEEDED if key not in state]
    if absent:
        raise HybridTokenizerError(
            f"{source} has no {', '.join(absent)}; give an OmniTokenizer with a codebook, not its VAE"
        )
    if any("_spatial_transformer." in key and ".spatial_rel_pos_bias." in key for key in state):
        raise HybridTokenizerError(
            f"{source} has relative positions in space; give a model of images and videos, such as imagenet_k600.ckpt"
        )
    table: Table = dict.fromkeys(DROPPED)
    table |= {
        "encoder.to_patch_emb_first_frame.1.": "embed.0.",
        "encoder.to_patch_emb_first_frame.2.": "embed.1.",
        "encoder.to_patch_emb_first_frame.3.": "embed.2.",
        "pre_vq_conv.1.": "to_codes.",
        "post_vq_conv.1.": "from_codes.",
        "codebook.embeddings": "codebook.weight",
        "decoder.to_pixels_first_frame.0.": "to_pixels.",
    }
    kept = dict(state)
    kinds: dict[str, str] = {}
    depths = []
    for half, short in (("encoder", "enc"), ("decoder", "dec")):
        space, time = f"{half}.{short}_spatial_transformer.", f"{half}.{short}_temporal_transformer."
        count = count_layers(state, f"{space}layers.")
        kinds[half] = "".join("w" if f"{space}layers.{i}.1.qkv.weight" in state else "t" for i in range(count))
        depths.append(count_layers(state, f"{time}layers."))
        table |= {f"{space}norm_out.": f"{half}_space.norm_out.", f"{time}norm_out.": f"{half}_time.norm_out."}
        for i, kind in enumerate(kinds[half]):
            old, new = f"{space}layers.{i}.", f"{half}_space.layers.{i}."
            table |= feed_table(old, new) | {f"{old}0.": f"{new}position.", f"{old}1.": f"{new}attention."}
            table |= {f"{old}1.context_norm.": None, f"{old}1.relative_position_index": None}
            if kind == "t":
                last_slice(kept, old)
        for i in range(depths[-1]):
            old, new = f"{time}layers.{i}.", f"{half}_time.layers.{i}."
            table |= feed_table(old, new) | {f"{old}0.": f"{new}position.", f"{old}1.to_out.": f"{new}to_out."}
            table |= {f"{old}1.to_kv.": f"{new}value.", f"{old}1.": None}
            last_slice(kept, old)
            both = f"{old}1.to_kv.weight"
            if both in kept:
                kept[both] = kept[both].chunk(2, dim=0)[1].contiguous()
    converted = rename_keys(kept, table, source)
    config = read_config(state, kinds, depths, sizes)
    return fill(lambda: OmniTokenizer(config), converted, source)


def feed_table(old: str, new: str) -> Table:
    """The names of a layer's feed-forward part."""
    return {f"{old}3.0.": f"{new}feed.norm.", f"{old}3.1.": f"{new}feed.up.", f"{old}3.4.": f"{new}feed.down."}


def last_slice(state: dict[str, Tensor], layer: str) -> None:
    """Keep what a single frame meets of a causal position convolution."""
    key = f"{layer}0.dsconv.weight"
    if key in state and state[key].ndim == 5:
        state[key] = state[key][:, :, -1].contiguous()


def read_config(
    state: dict[str, Tensor], kinds: dict[str, str], depths: list[int], sizes: dict[str, Any]
) -> OmniConfig:
    """The sizes that the weights show."""
    width, pixels = state[NEEDED[0]].shape
    size, dim = state["codebook.embeddings"].shape
    found: dict[str, Any] = {
        "width": width, "encoder": kinds["encoder"], "decoder": kinds["decoder"], "temporal_layers": depths,
        "patch_size": round((pixels / 3) ** 0.5), "codebook_size": size, "codebook_dim": dim,
    }  # fmt: skip
    for key, value in state.items():
        if key.endswith(".3.4.weight"):
            found["hidden"] = value.shape[1]
        elif key.endswith(".q_scale"):
            found["head_width"] = len(value)
        elif key.endswith(".relative_position_bias_table"):
            found["window"] = (round(len(value) ** 0.5) + 1) // 2
    queries = next((value for key, value in state.items() if key.endswith(".to_q.weight")), None)
    if queries is not None:
        found["heads"] = len(queries) // found.get("head_width", 64)
    return OmniConfig(**(found | sizes))
