"""The latent consistency sampler against diffusers' pipeline, and LoRAs against peft's own adapters."""

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from tiny_diffusion import make_decoder

from hybrid_tokenizer.diffusion import DecodeOptions
from hybrid_tokenizer.errors import HybridTokenizerError

SIZE = (32, 48)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("prediction_type", "guidance_scale"), [("epsilon", 1.0), ("v_prediction", 1.5)])
def test_pure_noise_equals_the_pipeline_with_its_scheduler(embeds, prediction_type, guidance_scale):
    decoder = make_decoder(prediction_type=prediction_type)
    config = {k: v for k, v in decoder.schedule.diffusers_config.items() if k != "timestep_spacing"}
    pipeline = StableDiffusionPipeline(
        vae=decoder.vae, unet=decoder.unet, scheduler=LCMScheduler(**config), text_encoder=None, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=decoder.null_condition.expand(2, -1, -1), output_type="pt",
        guidance_scale=guidance_scale, num_inference_steps=4, height=SIZE[0], width=SIZE[1], generator=seeded(1),
    ).images  # fmt: skip
    ours = decoder.decode(
        None, embeds, SIZE, sampler="lcm", start="add_noise", guidance_scale=guidance_scale, num_inference_steps=4,
        generator=seeded(1),
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs * 2 - 1, atol=1e-5, rtol=0)


def test_from_a_guide_all_steps_are_taken_within_the_strength(decoder, guide_images, embeds, monkeypatch):
    calls = []
    forward = decoder.unet.forward
    monkeypatch.setattr(decoder.unet, "forward", lambda x, t, **rest: calls.append(int(t)) or forward(x, t, **rest))
    options = {"sampler": "lcm", "start": "add_noise", "num_inference_steps": 4}
    result = decoder.decode(guide_images, embeds, SIZE, strength=0.5, generator=seeded(0), **options)
    assert len(calls) == 4 and calls == sorted(calls, reverse=True) and 480 <= calls[0] < 500
    alone = decoder.decode(guide_images[1:], embeds[1:], SIZE, strength=0.5, generator=[seeded(7)], **options)
    both = decoder.decode(guide_images, embeds, SIZE, strength=0.5, generator=[seeded(6), seeded(7)], **options)
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    assert not torch.equal(result, decoder.decode(guide_images, embeds, SIZE, strength=0.0, **options))


def test_what_cannot_be_done_is_refused(decoder, guide_images, embeds):
    with pytest.raises(HybridTokenizerError, match=r"start 'ddim_inversion' and eta 0\.0: it cannot be inverted"):
        DecodeOptions(sampler="lcm")
    with pytest.raises(HybridTokenizerError, match="sampler is 'euler', expected one of ddim, lcm"):
        DecodeOptions(sampler="euler")
    with pytest.raises(HybridTokenizerError, match=r"cannot take 20 steps at strength 0\.1"):
        decoder.decode(
            guide_images, embeds, SIZE, sampler="lcm", start="add_noise", num_inference_steps=20, strength=0.1
        )


def test_a_lora_becomes_part_of_the_unet(decoder, embeds, tmp_path):
    inputs = (torch.randn(2, 4, 4, 6), torch.tensor(500), embeds)
    with torch.no_grad():
        plain = decoder.unet(*inputs).sample
        adapted = make_decoder().unet
        adapted.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(adapted))
        names = set(decoder.unet.state_dict())
        decoder.fuse_lora(tmp_path)
        fused = decoder.unet(*inputs).sample
        torch.testing.assert_close(fused, adapted(*inputs).sample, atol=1e-5, rtol=0)
        assert (fused - plain).abs().max() > 1e-3 and set(decoder.unet.state_dict()) == names
    with pytest.raises(HybridTokenizerError, match="does not exist"):
        decoder.fuse_lora(tmp_path / "none.safetensors")
    other = make_decoder(unet={**decoder.config.unet, "cross_attention_dim": 16})
    with pytest.raises(HybridTokenizerError, match="is not a LoRA for this U-Net"):
        other.fuse_lora(tmp_path)
