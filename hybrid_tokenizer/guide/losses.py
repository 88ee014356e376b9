"""Losses of Branch I, unweighted: eq. 5, the perceptual term, and VQGAN's adversarial terms. The VQ loss is `quantizers.vq_loss`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.images import resize_area

SMALLEST_PERCEPTUAL_SIDE = 64
"""Smallest side for the perceptual term: feature networks are not meaningful on smaller images."""


def guide_target(images: Float[Tensor, "b 3 H W"], size: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """Eq. 4: the image at the guide's size."""
    return resize_area(images, size)


def recon_loss(guide_images: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Eq. 5 against `guide_target`.

    The mean is over the guide's own pixels. The upper limit H*W*C printed in eq. 5 is a slip: the resized target has
    only h*w*C values.
    """
    return F.mse_loss(guide_images.float(), target.float())


def recon_losses(guide_images: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b"]:
    """Eq. 5 per image."""
    target = guide_target(images, (guide_images.shape[-2], guide_images.shape[-1]))
    return (guide_images.float() - target.float()).square().mean((1, 2, 3))


def perceptual_loss(
    guide_images: Float[Tensor, "b 3 h w"],
    target: Float[Tensor, "b 3 h w"],
    distance: Callable[[Tensor, Tensor], Tensor],
    smallest_side: int = SMALLEST_PERCEPTUAL_SIDE,
) -> Float[Tensor, ""]:
    """Mean of `distance`, which maps two image batches in [-1, 1] to one number per image. 0 for guides smaller than
    `smallest_side`."""
    if min(guide_images.shape[-2:]) < smallest_side:
        return guide_images.new_zeros(())
    return distance(guide_images, target).mean()


def discriminator_loss(real_logits: Float[Tensor, "*r"], fake_logits: Float[Tensor, "*f"]) -> Float[Tensor, ""]:
    """Hinge loss of the discriminator (Esser et al. 2021). Both sets of logits come from detached images."""
    return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2


def adversarial_loss(fake_logits: Float[Tensor, "*f"]) -> Float[Tensor, ""]:
    """The tokenizer's adversarial loss: the negated logits of its guides."""
    return -fake_logits.mean()


def adversarial_factor(step: int, start_step: int) -> float:
    """0 before `start_step`, then 1: adversarial gradients on early, noisy guides do harm."""
    return float(step >= start_step)


def adaptive_weight(
    rest: Float[Tensor, ""], adversarial: Float[Tensor, ""], last_weight: Float[Tensor, "*w"], largest: float = 1e4
) -> Float[Tensor, ""]:
    """VQGAN's eq. 7: the ratio of the gradient norms of the other losses and the adversarial loss at the last layer.

    Both losses must have a graph; the result is detached.
    """
    (grad_rest,) = torch.autograd.grad(rest, last_weight, retain_graph=True)
    (grad_adversarial,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (grad_rest.norm() / (grad_adversarial.norm() + 1e-4)).clamp(0, largest).detach()
