"""What a decoder of few codes leaves undone: seams between blocks, seen where they are, in the picture."""

from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from jaxtyping import Float
from torch import Tensor, nn


class Refiner(nn.Module):
    """`x + g(x)` on guide images, g a stack of convolutions at half resolution whose last one starts at zero."""

    def __init__(self, blocks: int, channels: int):
        super().__init__()
        last = nn.Conv2d(channels, 12, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, channels, 3, padding=1),
            *(AutoencoderTinyBlock(channels, channels, "relu") for _ in range(blocks)),
            last,
            nn.PixelShuffle(2),
        )

    @property
    def last(self) -> nn.Conv2d:
        """The last convolution."""
        return self.body[-2]

    def forward(self, guide_images: Float[Tensor, "b 3 gh gw"]) -> Float[Tensor, "b 3 gh gw"]:
        """Even sides; not clamped."""
        return guide_images + self.body(guide_images)
