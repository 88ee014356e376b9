"""PatchGAN discriminator: one logit per patch of a guide image."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError


@dataclass
class DiscriminatorConfig:
    """Sizes of the discriminator: `layers` strided levels. MoVQGAN uses 2 levels of width 64, VQGAN 3."""

    channels: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        if self.channels < 1 or self.layers < 1:
            raise HybridTokenizerError(
                f"channels={self.channels} and layers={self.layers} of the discriminator must be positive"
            )

    @property
    def smallest_side(self) -> int:
        """Smallest side that leaves a logit: the last two convolutions remove one pixel each."""
        return 3 * 2**self.layers


class PatchDiscriminator(nn.Module):
    """pix2pix's discriminator (Isola et al. 2017): 4x4 convolutions, batch norm, leaky ReLU."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, config.layers + 1):
            wider = config.channels * min(2**level, 8)
            stride = 2 if level < config.layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 _ _"]:
        """Logits per patch; high means real."""
        self.check_side(min(images.shape[-2:]))
        return self.body(images)

    def check_side(self, side: int) -> None:
        """Raise when guide images with this shorter side leave no logit."""
        if side < self.config.smallest_side:
            raise HybridTokenizerError(
                f"guide images of {side} px are too small for {self.config.layers} discriminator layers, which need "
                f"{self.config.smallest_side}; use fewer layers or switch the adversarial loss off"
            )
