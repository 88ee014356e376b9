"""Cross-attention that computes a condition's keys and values once per decode, since it is constant over the steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class RememberingProcessor:
    """diffusers' AttnProcessor2_0 for plain cross-attention, which remembers keys and values of each condition tensor.

    Conditions are told apart by the identity of their tensors. The tensors are kept, so that no identity is reused.
    """

    def __init__(self) -> None:
        self.remembered: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        attention_mask: None = None,
    ) -> Float[Tensor, "b n c"]:
        found = self.remembered.get(id(encoder_hidden_states))
        if found is None:
            projected = (attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
            key, value = (rearrange(p, "b m (heads c) -> b heads m c", heads=attn.heads) for p in projected)
            found = self.remembered[id(encoder_hidden_states)] = (encoder_hidden_states, key, value)
        _, key, value = found
        query = rearrange(attn.to_q(hidden_states), "b n (heads c) -> b heads n c", heads=attn.heads)
        attended = rearrange(F.scaled_dot_product_attention(query, key, value), "b heads n c -> b n (heads c)")
        linear, dropout = attn.to_out
        return dropout(linear(attended))


@contextmanager
def remembered_conditions(unet: nn.Module) -> Iterator[None]:
    """Within the context, every plain cross-attention of a diffusers U-Net remembers; on exit all is restored.

    For inference only. Attention with other processors or options stays as it is, and so does a compiled U-Net.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    before = {}
    if unet._compiled_call_impl is None:  # tracing a changing dictionary would recompile at every step
        before = {
            module: module.processor
            for module in unet.modules()
            if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0 and _is_plain(module)
        }
    for module in before:
        module.set_processor(RememberingProcessor())
    try:
        yield
    finally:
        for module, processor in before.items():
            module.set_processor(processor)


def _is_plain(attn: nn.Module) -> bool:
    options = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    return (
        attn.is_cross_attention
        and all(not option for option in options)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )
