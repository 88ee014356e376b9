"""Classifier-free guidance: both conditions in one U-Net call, and their combination."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def batch_conditions(
    uncond_embeds: Float[Tensor, "b n d"], cond_embeds: Float[Tensor, "b n d"]
) -> Float[Tensor, "b2 n d"]:
    """Both conditions as one batch, unconditional half first."""
    return torch.cat([uncond_embeds, cond_embeds])


def combine(model_output: Float[Tensor, "b2 c h w"], guidance_scale: float) -> Float[Tensor, "b c h w"]:
    """uncond + guidance_scale (cond - uncond), for a batch made with `batch_conditions`.

    It is linear, so it applies to noise and v alike, before any conversion.
    """
    uncond, cond = rearrange(model_output, "(two b) c h w -> two b c h w", two=2).unbind()
    return uncond + guidance_scale * (cond - uncond)
