"""VQGAN's encoder and decoder around any codebook: what Gumbel VQGAN, VAR, IBQ and LlamaGen share.

MoVQ and VQGAN themselves are Branch I without a stem and need no class of their own.
"""

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.guide.tokenizer import block_types
from hybrid_tokenizer.quantizers import rows_at_once


class Skeleton(nn.Module):
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
        """Image pixels a token, along a side."""
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
        check_indices(grids, self.codebook_size)
        (indices,) = grids
        return self.decode_codes(self.quantizer.codes(indices))


def check_indices(grids: tuple[Int[Tensor, "b _ _"], ...], codebook_size: int) -> None:
    """Raise where an index names no code."""
    for grid in grids:
        low, high = grid.aminmax()
        if low < 0 or high >= codebook_size:
            raise HybridTokenizerError(
                f"indices span {low.item()} to {high.item()}; this codebook has 0..{codebook_size - 1}"
            )


def largest_product(features: Float[Tensor, "*grid d"], vectors: Float[Tensor, "k d"]) -> Int[Tensor, "*grid"]:
    """Index of the vector with the largest dot product, in fp32 and in blocks of bounded memory."""
    with torch.autocast(features.device.type, enabled=False):
        vectors = vectors.float()
        flat = features.float().reshape(-1, features.shape[-1])
        blocks = flat.split(rows_at_once(len(vectors), flat.device))
        found = torch.cat([(block @ vectors.T).max(dim=1).indices for block in blocks])
        return found.reshape(features.shape[:-1])
