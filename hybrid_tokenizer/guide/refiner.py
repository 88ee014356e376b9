"""The refiner: removes the seams between blocks that a decoder of few codes leaves in the guide image."""

from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from jaxtyping import Float
from torch import Tensor, nn


class Refiner(nn.Module):
    """`x + g(x)` on guide images, where g is a stack of convolutions at half resolution whose last one is initialised to zero."""

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
        """Refine guide images with even sides. The result is not clamped."""
        return guide_images + self.body(guide_images)
