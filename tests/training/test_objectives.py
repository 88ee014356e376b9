"""Each stage's objective learns: what it trains moves, what it freezes does not, and a small set is soon known by heart."""

from dataclasses import replace

import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_uint8, to_uint8
from hybrid_tokenizer.semantic import SemanticConfig, SemanticTokenizer
from hybrid_tokenizer.text import MiniLMText
from hybrid_tokenizer.training.config import (
    ContrastiveOptions,
    GuideLossOptions,
    QuantizeOptions,
    UNetOptions,
    VAELossOptions,
)
from hybrid_tokenizer.training.guide import GuideObjective
from hybrid_tokenizer.training.semantic import QuantizeObjective, SentenceContrastive
from hybrid_tokenizer.training.unet import UNetObjective
from hybrid_tokenizer.training.vae import VAEObjective

CAPTIONS = ["two cats on a sofa", "a red bus", "mountains at dusk", "a bowl of soup"]


def small_semantic():
    return SemanticTokenizer(
        SemanticConfig(
            image_size=32, patch_size=16, vision_width=16, vision_layers=1, vision_heads=2, vision_mlp_width=16, width=16,
            num_queries=4, qformer_layers=1, qformer_heads=2, qformer_mlp_width=16, decoder_layers=1, decoder_heads=2,
            decoder_mlp_width=16, reverse_layers=1, generation_width=384,
        )
    )  # fmt: skip


def text_decoder():
    """A small DiffusionDecoder that reads MiniLM's features."""
    config = small_hybrid().diffusion.config
    return DiffusionDecoder(replace(config, unet={**config.unet, "cross_attention_dim": 384}, num_condition_tokens=77))


def batch_of(objective):
    images = noise_images(4, height=32, width=32)
    batch = {"images": images, "captions": CAPTIONS, "skipped": []}
    if isinstance(objective, UNetObjective):
        tokens = objective.frozen["semantic"].encode(images)
        batch |= {
            "latents": objective.decoder.encode_latents(images),
            "semantic_indices": tokens,
            "pixels": to_uint8(images),
        }
    return batch


def build(stage):
    torch.manual_seed(0)
    if stage == "guide":
        return GuideObjective(small_hybrid(nested=True).guide, GuideLossOptions(perceptual=0.1))
    if stage == "vae":
        return VAEObjective(small_hybrid().diffusion, VAELossOptions())
    if stage.startswith("unet"):
        options = UNetOptions(
            perceptual=0.05,
            pixel=1.0,
            timestep_power=1.5,
            vae_decoder=stage == "unet_and_vae_decoder",
        )
        return UNetObjective(text_decoder(), small_semantic(), options, text=MiniLMText())
    if stage == "quantize":
        return QuantizeObjective(small_semantic(), QuantizeOptions(sentence=0.2))
    return SentenceContrastive(small_semantic(), ContrastiveOptions(label_smoothing=0.0, feature_width=32))


@pytest.mark.parametrize("stage", ["guide", "vae", "unet", "unet_and_vae_decoder", "contrastive", "quantize"])
def test_a_small_set_is_soon_known_by_heart(stage, tmp_path):
    objective = build(stage)
    batch = batch_of(objective)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    totals = []
    objective.train()
    for step in range(9):
        torch.manual_seed(0)  # the same noise, timesteps and prefixes every time
        losses = objective(batch, step)
        assert all(value.ndim == 0 for value in losses.values())
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        totals.append(losses["total"].item())
    assert max(totals[-3:]) < 0.9 * totals[0]

    after = objective.state_dict()
    if stage.startswith("unet"):
        vae = objective.decoder.vae
        assert all(
            not weight.requires_grad for name, weight in vae.named_parameters() if not name.startswith("decoder.")
        )
        assert all(weight.requires_grad == (stage == "unet_and_vae_decoder") for weight in vae.decoder.parameters())
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert not [key for key in moved if key.startswith("frozen.")]
    assert {key for key, value in objective.named_parameters() if value.requires_grad} <= moved
    assert not [key for key in objective.saved_state() if key.startswith("frozen.")]
    assert not objective.frozen.training and objective.model.training

    objective.eval()
    with torch.no_grad():
        validated = objective.validate([batch])
        assert validated.figures == objective.validate([batch]).figures
    assert all(isinstance(value, float) for value in validated.figures.values())
    if validated.pictures is not None:
        assert validated.pictures.shape[2:] == (3, 32, 32) and validated.pictures.isfinite().all()
    objective.export(tmp_path / "final", [batch])
    component = objective.decoder if stage.startswith(("vae", "unet")) else objective.model
    mine = component.state_dict()
    for key, value in type(component).from_pretrained(tmp_path / "final").state_dict().items():
        assert torch.equal(value, mine[key]), key


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_unet_conditions_come_from_one_tower_where_the_other_has_no_share(share, monkeypatch):
    options = UNetOptions(semantic_share=share, null_share=0.0)
    objective = UNetObjective(text_decoder(), small_semantic(), options, text=MiniLMText())
    batch = batch_of(objective)
    text = objective.frozen["text"].token_features(CAPTIONS)
    generated = objective.frozen["semantic"].decode(batch["semantic_indices"])
    unused = objective.frozen["text" if share else "semantic"]
    monkeypatch.setattr(unused, "token_features" if share else "decode", None)  # a call would raise
    torch.testing.assert_close(objective.conditions(batch), generated if share else text)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_unet_steps_see_one_window_of_latents_and_guides(share, monkeypatch):
    objective = UNetObjective(text_decoder(), small_semantic(), UNetOptions(crop=2, crop_share=share))
    batch = batch_of(objective)
    guides = torch.arange(4.0).view(4, 1, 1, 1) + batch["latents"]
    monkeypatch.setattr(objective, "guide_latents", lambda prefixes: guides)
    objective.frozen["guide"] = torch.nn.Identity()
    seen = {}

    def denoise(latents, timesteps, condition, guide_latents, restores):
        seen.update(latents=latents, guides=guide_latents)
        return torch.zeros(len(latents)), latents

    monkeypatch.setattr(objective, "denoise", denoise)
    objective({**batch, "guide_latents": None}, 0)
    side = 2 if share else batch["latents"].shape[-1]
    assert seen["latents"].shape[-2:] == seen["guides"].shape[-2:] == (side, side)
    expected = torch.arange(4.0).view(4, 1, 1, 1).expand_as(seen["latents"])
    torch.testing.assert_close(seen["guides"] - seen["latents"], expected)  # both cut at the same place


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_decoded_losses_compare_with_the_photograph_at_the_same_place(share, crop, monkeypatch):
    """A U-Net that knows the true latents, and a VAE that is exact: nothing is left to lose, wherever the windows lie."""
    options = UNetOptions(pixel=1.0, perceptual=1.0, perceptual_window=3, crop=crop, vae_decoder=True, vae_share=share)
    objective = UNetObjective(text_decoder(), small_semantic(), options, text=MiniLMText())
    batch = batch_of(objective)
    factor = objective.decoder.config.vae_factor
    side = 8 * factor
    coarse = to_uint8(noise_images(4, height=8, width=8))
    batch["pixels"] = coarse.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    batch["latents"] = torch.cat([from_uint8(coarse), from_uint8(coarse)[:, :1]], dim=1)
    assert batch["pixels"].shape[-2:] == (side, side)
    monkeypatch.setattr(
        objective.decoder, "decode_latents",
        lambda latents: latents[:, :3].repeat_interleave(factor, -1).repeat_interleave(factor, -2),
    )  # fmt: skip

    def denoise(latents, *others):
        return torch.zeros(len(latents)), latents if share == 0 else torch.zeros_like(latents)

    monkeypatch.setattr(objective, "denoise", denoise)
    for seed in range(5):
        torch.manual_seed(seed)
        losses = objective(batch, 0)
        assert losses["pixel"] == 0 and losses["perceptual"] < 1e-9
    monkeypatch.setattr(objective, "denoise", lambda latents, *others: (torch.zeros(len(latents)), latents.roll(1, 0)))
    assert (objective(batch, 0)["pixel"] > 0.01) == (share == 0)


def test_contradictory_or_negative_options_are_refused():
    with pytest.raises(HybridTokenizerError, match=r"vae_decoder=true .* has no loss"):
        UNetOptions(vae_decoder=True)
    for options, group in (
        (UNetOptions, "unet"), (GuideLossOptions, "loss"), (VAELossOptions, "vae_loss"),
    ):  # fmt: skip
        with pytest.raises(HybridTokenizerError, match=rf"^{group}\.perceptual=-1\.0 must not be negative"):
            options(perceptual=-1.0)


def test_the_sentence_term_tells_captions_apart():
    """Four images, four captions: with it each image's mean generation embedding is nearest to its own caption's."""
    objective = build("quantize").train()
    batch = batch_of(objective)
    embeds = torch.randn(4, 4, 16)  # a random vision encoder gives all images nearly the same
    objective.model.causal_embeds = lambda images: embeds
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        values = objective(batch, step)
        expected = sum(getattr(objective.options, name) * value for name, value in values.items() if name != "total")
        torch.testing.assert_close(values["total"], expected)
        losses.append(values["sentence"].item())
        optimizer.zero_grad()
        values["total"].backward()
        optimizer.step()
    objective.eval()
    assert objective.validate([batch]).figures["caption_recall@1"] == 1
    assert losses[-1] < 0.7 * losses[0]
