"""Loss of the encoder's code search."""

from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.guide.search import GuideLosses
from hybrid_tokenizer.perceptual import EfficientNetDistance

PERCEPTUAL_WEIGHT = 0.01
"""Weight of the feature distance beside the squared error of the decoded image (docs/experiments.md)."""


def decoded_losses(
    diffusion: DiffusionDecoder,
    distance: EfficientNetDistance,
    images: Float[Tensor, "b 3 h w"],
    generation_embeds: Float[Tensor, "b n d"] | None,
) -> GuideLosses:
    """Loss per image of the code search: the distance from `images` of what `diffusion` decodes with its default options."""
    size = (images.shape[-2], images.shape[-1])

    def losses_of(guide_images: Float[Tensor, "b 3 gh gw"]) -> Float[Tensor, "b"]:
        decoded = diffusion.decode(guide_images.clamp(-1, 1), generation_embeds, size, differentiable=True)
        return (decoded - images).square().mean((1, 2, 3)) + PERCEPTUAL_WEIGHT * distance(decoded, images)

    return losses_of
