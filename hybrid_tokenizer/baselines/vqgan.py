"""VQGAN and its descendants: one convolutional backbone, several codebooks.

VQGAN itself (taming-transformers, latent-diffusion) and MoVQ are Branch I without a stem. Gumbel VQGAN, IBQ, LlamaGen and
VAR (`var_vae.py`) put their own codebook into `Backbone`.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Decoder, Encoder
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import fill
from hybrid_tokenizer.checkpoints.keys.llamagen import llamagen_to_backbone
from hybrid_tokenizer.checkpoints.keys.movqgan import movqgan_to_guide
from hybrid_tokenizer.checkpoints.keys.seed_voken import ibq_to_backbone
from hybrid_tokenizer.checkpoints.keys.taming import gumbel_to_backbone, taming_to_guide
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.guide.tokenizer import block_types
from hybrid_tokenizer.guide.warm_start import read_base
from hybrid_tokenizer.quantizers import rows_at_once


class Backbone(nn.Module):
    """Encoder, convolution, codebook, convolution, decoder. Lists in `config` run from the highest resolution down.

    quantizer: has `lookup(features) -> codes, indices` and `codes(indices)`, channel last.
    kernel_size: of the convolutions around the codebook; VAR's is 3.
    """

    def __init__(self, config: GuideConfig, quantizer: nn.Module, kernel_size: int = 1):
        super().__init__()
        if config.norm_type != "group" or config.stem != "none":
            raise HybridTokenizerError(
                f"norm_type={config.norm_type!r} and stem={config.stem!r} are Branch I's own; use 'group' and 'none' here"
            )
        self.config = config
        self.encoder = Encoder(
            out_channels=config.z_channels, double_z=False,
            down_block_types=block_types(len(config.encoder_channels), config.encoder_attention, "DownEncoderBlock2D"),
            block_out_channels=tuple(config.encoder_channels),
            layers_per_block=config.encoder_layers, norm_num_groups=config.norm_num_groups,
        )  # fmt: skip
        dim, padding = config.quantizer.codebook_dim, kernel_size // 2
        self.quant_conv = nn.Conv2d(config.z_channels, dim, kernel_size, padding=padding)
        self.quantizer = quantizer
        self.post_quant_conv = nn.Conv2d(dim, config.z_channels, kernel_size, padding=padding)
        self.decoder = Decoder(
            in_channels=config.z_channels, out_channels=3,
            up_block_types=block_types(len(config.decoder_channels), config.decoder_attention, "UpDecoderBlock2D")[::-1],
            block_out_channels=tuple(config.decoder_channels),
            layers_per_block=config.decoder_layers, norm_num_groups=config.norm_num_groups,
        )  # fmt: skip

    @property
    def codebook_size(self) -> int:
        """Codes in the one codebook."""
        return self.config.quantizer.codebook_size

    @property
    def downsample_factor(self) -> int:
        """Image pixels per token, along a side."""
        return self.config.downsample_factor

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b h w d"]:
        """What the codebook quantizes."""
        self.config.grid_size((images.shape[-2], images.shape[-1]))
        return rearrange(self.quant_conv(self.encoder(images)), "b d h w -> b h w d")

    def decode_codes(self, codes: Float[Tensor, "b h w d"]) -> Float[Tensor, "b 3 H W"]:
        """Codes to images; not clamped."""
        return self.decoder(self.post_quant_conv(rearrange(codes, "b h w d -> b d h w")))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Int[Tensor, "b h w"], ...]:
        """Images to one grid of indices."""
        return (self.quantizer.lookup(self.features(images))[1],)

    @torch.no_grad()
    def decode(self, grids: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b 3 H W"]:
        """Indices alone to images; not clamped."""
        (indices,) = grids
        return self.decode_codes(self.quantizer.codes(indices))


class Codebook(nn.Module):
    """Codes as rows of a table. Subclasses choose among them in `choose`."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)

    def choose(self, features: Float[Tensor, "*grid d"]) -> Int[Tensor, "*grid"]:
        """The index of each feature's code."""
        raise NotImplementedError

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Rows of the table."""
        return F.embedding(indices, self.embedding.weight)

    def lookup(self, features: Float[Tensor, "*grid d"]) -> tuple[Float[Tensor, "*grid d"], Int[Tensor, "*grid"]]:
        """Codes and indices."""
        indices = self.choose(features)
        return self.codes(indices), indices


class GumbelCodebook(Codebook):
    """A linear layer gives one logit per code; the largest wins.

    The reference adds Gumbel noise to the logits even in evaluation; this is its noise-free mode.
    """

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__(codebook_size, codebook_dim)
        self.projection = nn.Linear(codebook_dim, codebook_size)

    def choose(self, features: Float[Tensor, "*grid d"]) -> Int[Tensor, "*grid"]:
        """The largest logit."""
        return self.projection(features).argmax(dim=-1)


class DotCodebook(Codebook):
    """IBQ (index backpropagation quantization): the code with the largest dot product, not the nearest one."""

    def choose(self, features: Float[Tensor, "*grid d"]) -> Int[Tensor, "*grid"]:
        """The largest dot product."""
        return largest_product(features, self.embedding.weight)


class UnitCodebook(Codebook):
    """LlamaGen's: the code at the smallest angle. Decoding reads codes of length 1."""

    def choose(self, features: Float[Tensor, "*grid d"]) -> Int[Tensor, "*grid"]:
        """The smallest angle."""
        return largest_product(F.normalize(features, dim=-1), F.normalize(self.embedding.weight, dim=-1))

    def codes(self, indices: Int[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """Rows of the table, of length 1."""
        return F.normalize(super().codes(indices), dim=-1)


def largest_product(features: Float[Tensor, "*grid d"], vectors: Float[Tensor, "k d"]) -> Int[Tensor, "*grid"]:
    """Index of the vector with the largest dot product, in fp32 and in blocks of bounded memory."""
    with torch.autocast(features.device.type, enabled=False):
        vectors = vectors.float()
        flat = features.float().reshape(-1, features.shape[-1])
        blocks = flat.split(rows_at_once(len(vectors), flat.device))
        found = torch.cat([(block @ vectors.T).max(dim=1).indices for block in blocks])
        return found.reshape(features.shape[:-1])


State = dict[str, Tensor]


def build_vqgan(state: State, source: str) -> GuideTokenizer:
    """VQGAN from its checkpoint."""
    converted, sizes = taming_to_guide(state, source)
    if sizes["norm_type"] != "group":
        raise HybridTokenizerError(f"{source} has MoVQ's spatial norms; load it as movq")
    return fill(lambda: GuideTokenizer(GuideConfig.from_dict(sizes)), converted, source)


def build_movq(state: State, source: str) -> GuideTokenizer:
    """MoVQ from MoVQGAN's checkpoint."""
    converted, sizes = movqgan_to_guide(state, source)
    if sizes["norm_type"] != "spatial":
        raise HybridTokenizerError(f"{source} has no spatial norms, so it is no MoVQ; load it as vqgan")
    return fill(lambda: GuideTokenizer(GuideConfig.from_dict(sizes)), converted, source)


def build_movq_folder(folder: Path) -> GuideTokenizer:
    """MoVQ from a diffusers folder (`config.json` and weights), such as Kandinsky's `movq`."""
    state, config = read_base(folder)
    if config.norm_type != "spatial" or config.stem != "none":
        raise HybridTokenizerError(f"{folder} has no spatial norms, or a stem: it is no MoVQ; give a folder named movq")
    return fill(lambda: GuideTokenizer(config), state, str(folder))


def build_gumbel(state: State, source: str) -> Backbone:
    """Gumbel VQGAN from its checkpoint."""
    return with_codebook(GumbelCodebook, *gumbel_to_backbone(state, source), source)


def build_ibq(state: State, source: str) -> Backbone:
    """IBQ from SEED-Voken's checkpoint, with the averaged weights where the file has them."""
    return with_codebook(DotCodebook, *ibq_to_backbone(state, source), source)


def build_llamagen(state: State, source: str) -> Backbone:
    """LlamaGen's VQ from its checkpoint."""
    return with_codebook(UnitCodebook, *llamagen_to_backbone(state, source), source)


def with_codebook(kind: type[Codebook], state: State, sizes: dict[str, Any], source: str) -> Backbone:
    """The backbone around a codebook of that kind, with these weights."""
    config = GuideConfig.from_dict(sizes)
    quantizer = config.quantizer
    return fill(lambda: Backbone(config, kind(quantizer.codebook_size, quantizer.codebook_dim)), state, source)
