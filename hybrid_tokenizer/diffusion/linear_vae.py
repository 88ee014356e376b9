"""The tiny preset's VAE: a cosine transform code plus learned networks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, EncoderTiny
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.dct import LinearPath
from hybrid_tokenizer.images import in_chunks


class AutoencoderTinyLinear(ModelMixin, AutoencoderMixin, ConfigMixin):
    """Codes the lowest cosine coefficients of each block; `AutoencoderTiny`'s encoder and a block decoder learn the rest.

    Called and stored as diffusers' own VAEs are. At step 0 it is the transform code: 28.5 dB with 16 channels on
    photographs, where `AutoencoderTiny` alone takes thousands of steps to pass 24 dB.

    `decoder_channels`, `decoder_layers` and `decoder_gain` belong to the `BlockDecoder`; no gain means ones.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        block_out_channels: Sequence[int] = (48, 48, 48, 48),
        num_encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        decoder_channels: int = 128,
        decoder_layers: int = 4,
        decoder_gain: Sequence[float] | None = None,
        scaling_factor: float = 1.0,
    ):
        super().__init__()
        block = 2 ** (len(block_out_channels) - 1)
        self.encoder = EncoderTiny(3, latent_channels, num_encoder_blocks, block_out_channels, act_fn="relu")
        gain = [1.0] * latent_channels if decoder_gain is None else decoder_gain
        self.decoder = BlockDecoder(gain, block, decoder_channels, decoder_layers)
        self.linear_path = LinearPath(latent_channels, block)
        nn.init.zeros_(self.encoder.layers[-1].weight)  # at step 0 the networks add nothing
        nn.init.zeros_(self.encoder.layers[-1].bias)
        self.use_slicing = False
        self.use_tiling = False

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> AutoencoderTinyOutput:
        """Images in [-1, 1], sides multiples of the block, to latents."""
        return AutoencoderTinyOutput(latents=in_chunks(self._encode, images, 1 if self.use_slicing else None))

    def decode(self, latents: Float[Tensor, "b c h w"]) -> DecoderOutput:
        """Latents to images in about [-1, 1], not clamped."""
        return DecoderOutput(sample=in_chunks(self._decode, latents, 1 if self.use_slicing else None))

    def _encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        block = self.linear_path.block
        linear = self.linear_path.features(images, (images.shape[-2] // block, images.shape[-1] // block))
        return self.encoder(images) + rearrange(linear, "b h w d -> b d h w")

    def _decode(self, latents: Float[Tensor, "b c gh gw"]) -> Float[Tensor, "b 3 h w"]:
        return self.decoder(latents) + self.linear_path.images(rearrange(latents, "b d h w -> b h w d"))


class BlockDecoder(nn.Module):
    """Predicts what the blocks of an image hold beyond their lowest coefficients, from the latents around them.

    Residual convolutions at the resolution of the latents; the last one predicts all cosine coefficients of each block. They
    cost a fraction of a network at the image's resolution, and have a larger receptive field.

    gain: factor per channel on the latents that the network reads, which brings all to about unit size. High frequencies are
        a fiftieth of the mean colour.
    """

    OUTPUT_SCALE = 0.01
    """Root mean square, on photographs, of a coefficient beyond the 16 lowest, so that the network's outputs have unit size.
    Without it the first steps draw noise, which a perceptual loss punishes far more than it rewards detail."""

    def __init__(self, gain: Sequence[float], block: int, channels: int, layers: int):
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain, dtype=torch.float32).view(-1, 1, 1))
        self.conv_in = nn.Conv2d(len(gain), channels, 3, padding=1)
        self.layers = nn.Sequential(*(ResidualLayer(channels) for _ in range(layers)))
        self.linear_path = LinearPath(3 * block**2, block)
        self.conv_out = nn.Conv2d(channels, 3 * block**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, latents: Float[Tensor, "b c gh gw"]) -> Float[Tensor, "b 3 h w"]:
        """The image to add to that of the linear path."""
        hidden = self.layers(self.conv_in(latents * self.gain))
        coefficients = self.OUTPUT_SCALE * self.conv_out(F.silu(hidden)).float()
        return self.linear_path.images(rearrange(coefficients, "b d h w -> b h w d"))


class ResidualLayer(nn.Module):
    """`x + g(x)`, g zero at step 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return hidden + self.last(F.silu(self.first(F.silu(hidden))))
