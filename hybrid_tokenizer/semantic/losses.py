"""Losses of Branch II, unweighted: eq. 6 (stage 1), eqs. 7 and 8 (stage 2). The VQ loss is `quantizers.vq_loss`."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def gather_features(features: Float[Tensor, "b d"], with_gradient: bool = True) -> Float[Tensor, "B d"]:
    """Features of every process in rank order; of this process alone without torch.distributed.

    Every process must hold the same number of rows. Without gradient the gathered rows are constants, the local ones too.
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

    Both features must be unit length. The temperature divides (no exponent): SEED starts it at 0.07.
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
    """Eq. 6 over pairs (row i of both sides), negatives from the whole global batch.

    The paper prints one direction and no smoothing; its reference code averages both directions with smoothing 0.1, and so
    does the default. `literal_eq6` is the printed form, image to text. `reference_gather` treats gathered features as
    constants, as SEED does: image to text then trains the image side only, and the reverse, for the same loss value.
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
    """Eq. 7 as 1 - cos, mean over images and queries: the sign and constant make it a loss. The target takes no gradient."""
    return (1 - F.cosine_similarity(cosine_embeds, causal_embeds.detach(), dim=-1)).mean()


def generation_loss(
    generation_embeds: Float[Tensor, "b m g"], target_embeds: Float[Tensor, "b m g"]
) -> Float[Tensor, ""]:
    """Eq. 8 as a mean over all elements: the printed norm sums over the width, and the weights 5/2/0.5 assume the mean."""
    return F.mse_loss(generation_embeds, target_embeds.detach())
