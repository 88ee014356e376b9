"""Attention within a decode: a condition is projected once with the same result to the bit, and joined projections agree."""

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny_diffusion import make_decoder

from hybrid_tokenizer.diffusion.attention import FusedProcessor, RememberingProcessor, decoding_attention


def cross_attentions(unet):
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]


@torch.no_grad()
def test_remembered_conditions_change_nothing_and_are_forgotten():
    unet = make_decoder().unet
    latents = torch.randn(2, 4, 5, 9, generator=torch.Generator().manual_seed(0))
    first, second = (
        torch.randn(2, 77, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    )
    plain = [unet(latents, 7, encoder_hidden_states=embeds).sample for embeds in (first, second, first)]
    with decoding_attention(unet, fuse=False):
        assert all(isinstance(module.processor, RememberingProcessor) for module in cross_attentions(unet))
        remembered = [unet(latents, 7, encoder_hidden_states=embeds).sample for embeds in (first, second, first)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(remembered, plain, strict=True))
    assert all(type(module.processor) is AttnProcessor2_0 for module in cross_attentions(unet))


@torch.no_grad()
def test_a_decode_projects_each_condition_once():
    decoder = make_decoder()
    projected = []
    layer = cross_attentions(decoder.unet)[0].to_k
    layer.register_forward_hook(lambda *_: projected.append(1))
    guide, embeds = torch.zeros(2, 3, 16, 24), torch.zeros(2, *decoder.null_condition.shape[1:])
    decoder.decode(guide, embeds, (32, 48), strength=0.5, num_inference_steps=10, start="add_noise")
    assert len(projected) == 1
    decoder.decode(
        guide, embeds, (32, 48), strength=0.5, num_inference_steps=10, start="ddim_inversion", guidance_scale=3
    )
    assert len(projected) == 3


@torch.no_grad()
def test_joined_projections_agree_and_leave_the_weights_alone():
    unet = make_decoder().unet
    names = set(unet.state_dict())
    latents = torch.randn(2, 4, 5, 9, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(2, 77, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    plain = unet(latents, 7, encoder_hidden_states=embeds).sample
    calls = []
    selves = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    for module in selves:
        module.to_k.register_forward_hook(lambda *_: calls.append(1))
    with decoding_attention(unet, fuse=True):
        assert selves and all(isinstance(module.processor, FusedProcessor) for module in selves)
        torch.testing.assert_close(unet(latents, 7, encoder_hidden_states=embeds).sample, plain, atol=1e-5, rtol=1e-5)
        assert not calls and set(unet.state_dict()) == names
    assert all(type(module.processor) is AttnProcessor2_0 for module in selves)
    assert torch.equal(unet(latents, 7, encoder_hidden_states=embeds).sample, plain)
    selves[0].to_q = torch.nn.Sequential(selves[0].to_q)  # as an adapter wraps it
    with decoding_attention(unet, fuse=True):
        assert [isinstance(module.processor, FusedProcessor) for module in selves] == [False] + [True] * (
            len(selves) - 1
        )
