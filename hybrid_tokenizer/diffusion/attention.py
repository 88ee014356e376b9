"""Attention within a decode: a condition's keys and values are computed once, and self-attention can join its projections."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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
        return attended(attn, query, key, value)


class FusedProcessor:
    """diffusers' AttnProcessor2_0 for plain self-attention, with the three projections as one matrix product.

    The joined weights live as long as the processor; the module's own stay as they are, and so does what is saved.
    """

    def __init__(self, attn: nn.Module):
        projections = (attn.to_q, attn.to_k, attn.to_v)
        self.weight = torch.cat([projection.weight for projection in projections])
        self.bias = None if attn.to_q.bias is None else torch.cat([projection.bias for projection in projections])

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
    ) -> Float[Tensor, "b n c"]:
        projected = F.linear(hidden_states, self.weight, self.bias)
        query, key, value = rearrange(
            projected, "b n (three heads c) -> three b heads n c", three=3, heads=attn.heads
        ).unbind()
        return attended(attn, query, key, value)


def attended(
    attn: nn.Module, query: Float[Tensor, "b h n c"], key: Float[Tensor, "b h m c"], value: Float[Tensor, "b h m c"]
) -> Float[Tensor, "b n d"]:
    """Scaled dot-product attention and the module's output projection."""
    values = rearrange(F.scaled_dot_product_attention(query, key, value), "b heads n c -> b n (heads c)")
    linear, dropout = attn.to_out
    return dropout(linear(values))


@contextmanager
def decoding_attention(unet: nn.Module, fuse: bool) -> Iterator[None]:
    """Within the context, every plain cross-attention of a diffusers U-Net keeps the keys and values of each condition. On exit
    all is restored.

    For inference only. Attention with other processors or options stays as it is, and so does a compiled U-Net.

    fuse: every plain self-attention joins its projections, which saves kernel launches on a GPU and rounds differently.
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
        if module.is_cross_attention:
            module.set_processor(RememberingProcessor())
        elif fuse and all(type(part) is nn.Linear for part in (module.to_q, module.to_k, module.to_v)):
            module.set_processor(FusedProcessor(module))
    try:
        yield
    finally:
        for module, processor in before.items():
            module.set_processor(processor)


def _is_plain(attn: nn.Module) -> bool:
    options = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    return all(not option for option in options) and not attn.residual_connection and attn.rescale_output_factor == 1
