"""Losses of Branch II, unweighted: eq. 6 (stage 1), eqs. 7 and 8 (stage 2). The VQ loss is `quantizers.vq_loss`."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def gather_features(features: Float[Tensor, "b d"], with_gradient: bool = True) -> Float[Tensor, "B d"]:
    """Features of every process in rank order. Without torch.distributed, those of this process.

    Every process must hold the same number of rows. Without `gradient` all gathered rows are constants, including the
    local ones.
    """
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not distributed:
        return features if with_gradient else features.detach()
    if with_gradient:
        return torch.cat(all_gather_with_gradient(features))
    gathered = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, features.detach().contiguous())
    return torch.cat(gathered)


def contrastive_logits(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    temperature: Float[Tensor, ""],
    reference_gather: bool = False,
) -> tuple[Float[Tensor, "b B"], Float[Tensor, "b B"]]:
    """Cosine similarities over the temperature, image to text and text to image, against the global batch.

    Both feature sets must have unit length. Logits are divided by the temperature itself, not by its exponential; SEED
    initialises it to 0.07.
    """
    all_text = gather_features(text_features, with_gradient=not reference_gather)
    all_images = gather_features(image_features, with_gradient=not reference_gather)
    return image_features @ all_text.T / temperature, text_features @ all_images.T / temperature


def contrastive_loss(
    image_features: Float[Tensor, "b d"],
    text_features: Float[Tensor, "b d"],
    temperature: Float[Tensor, ""],
    label_smoothing: float = 0.1,
    literal_eq6: bool = False,
    reference_gather: bool = False,
) -> Float[Tensor, ""]:
    """Eq. 6. Row i of both sides is a positive pair; negatives come from the whole global batch.

    The paper prints one direction without smoothing. Its reference code averages both directions with label smoothing
    0.1, and so does the default. `literal_eq6` is the printed form, image to text. `reference_gather` treats gathered
    features as constants, as SEED does: the loss value is the same, but image-to-text then trains only the image side,
    and text-to-image only the text side.
    """
    image_to_text, text_to_image = contrastive_logits(image_features, text_features, temperature, reference_gather)
    offset = dist.get_rank() * len(image_features) if image_to_text.shape[1] > len(image_features) else 0
    targets = torch.arange(len(image_features), device=image_features.device) + offset
    if literal_eq6:
        return F.cross_entropy(image_to_text, targets)
    return (
        F.cross_entropy(image_to_text, targets, label_smoothing=label_smoothing)
        + F.cross_entropy(text_to_image, targets, label_smoothing=label_smoothing)
    ) / 2


def cosine_loss(cosine_embeds: Float[Tensor, "b n d"], causal_embeds: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
    """Eq. 7 as 1 - cos, averaged over images and queries; the printed form has neither sign nor constant. The target
    gets no gradient."""
    return (1 - F.cosine_similarity(cosine_embeds, causal_embeds.detach(), dim=-1)).mean()


def generation_loss(
    generation_embeds: Float[Tensor, "b m g"], target_embeds: Float[Tensor, "b m g"]
) -> Float[Tensor, ""]:
    """Eq. 8 as a mean over all elements. The printed norm sums over the width, but SEED's loss weights assume the mean."""
    return F.mse_loss(generation_embeds, target_embeds.detach())
