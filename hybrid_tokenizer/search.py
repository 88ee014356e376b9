"""What the whole tokenizer's encoder searches for: guide codes whose decoded image is near, whatever the guide itself looks like."""

from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.guide.search import GuideLosses
from hybrid_tokenizer.metrics.perceptual import EfficientNetDistance

PERCEPTUAL = 0.01
"""Weight of the feature distance beside the squared error of the decoded image (docs/decisions.md)."""


def decoded_losses(
    diffusion: DiffusionDecoder,
    distance: EfficientNetDistance,
    images: Float[Tensor, "b 3 h w"],
    generation_embeds: Float[Tensor, "b n d"] | None,
) -> GuideLosses:
    """Losses for `GuideTokenizer.encode`, of what `diffusion` makes of a guide with its default options."""

    def losses_of(guide_images: Float[Tensor, "n 3 gh gw"], rows: slice) -> Float[Tensor, "n"]:
        references = images[rows]
        embeds = None if generation_embeds is None else generation_embeds[rows]
        size = (references.shape[-2], references.shape[-1])
        decoded = diffusion.decode(guide_images.clamp(-1, 1), embeds, size, differentiable=True)
        return (decoded - references).square().mean((1, 2, 3)) + PERCEPTUAL * distance(decoded, references)

    return losses_of
