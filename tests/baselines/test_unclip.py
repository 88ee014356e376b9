"""SEED-2 from a folder in its published form, and its decoder against diffusers' own unCLIP pipeline."""

import json
import math

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from helpers.small_models import noise_images
from test_diffusion_rows import UNET, VAE, below, fixture, seeded
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.baselines.seed import load_seed2_row
from hybrid_tokenizer.baselines.unclip import load_unclip
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.protocol import ImageTokenizer
from hybrid_tokenizer.semantic.conversion import HeadCounts

WIDTH, STATES = 24, 12  # of the fixtures' image embedding, of the small text encoder


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghij", *(letter + "</w>" for letter in "abcdefghij")]
    sizes = {"hidden_size": STATES, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes
    )
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=WIDTH)
    with torch.no_grad():
        normalizer.mean.normal_()
        normalizer.std.uniform_(0.5, 2)
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=WIDTH, **sizes)
        ),
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8),
        text_encoder=CLIPTextModel(text),
        unet=diffusers.UNet2DConditionModel(
            **UNET, cross_attention_dim=STATES, class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * WIDTH,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
            clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        ),
        vae=diffusers.AutoencoderKL(**VAE),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("unclip")
    for name in (
        "image_normalizer",
        "image_noising_scheduler",
        "tokenizer",
        "text_encoder",
        "unet",
        "scheduler",
        "vae",
    ):
        getattr(pipeline, name).save_pretrained(path / name)
    return path


@pytest.mark.parametrize("guidance_scale", [2.0, 10.0])
def test_the_decoder_is_the_pipeline_of_diffusers(pipeline, folder, guidance_scale):
    embeds = torch.randn(2, WIDTH)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt=["", ""], image_embeds=embeds, num_inference_steps=4, guidance_scale=guidance_scale, output_type="pt",
        generator=[seeded(1), seeded(2)],
    ).images  # fmt: skip
    decoded = load_unclip(folder).decode(
        embeds, [seeded(1), seeded(2)], num_inference_steps=4, guidance_scale=guidance_scale
    )
    torch.testing.assert_close((decoded + 1) / 2, expected, rtol=0, atol=1e-5)


def test_the_embeddings_noise_is_drawn_at_level_0_too(folder):
    decoder = load_unclip(folder)
    embeds = torch.randn(1, WIDTH)
    labels = decoder.class_labels(embeds, 0, [seeded(1)])
    assert labels.shape == (1, 2 * WIDTH)
    distance = (labels[:, :WIDTH] - embeds).abs().max()
    assert 0 < distance < 0.3
    assert (decoder.class_labels(embeds, 500, [seeded(1)])[:, :WIDTH] - embeds).abs().max() > distance
    with pytest.raises(HybridTokenizerError, match=f"are 7 wide, this unCLIP model takes {WIDTH}"):
        decoder.decode(torch.randn(1, 7), [seeded(1)])


@pytest.mark.parametrize("flavour", ["mlp", "revq"])
def test_seed2_is_a_row(folder, tmp_path, flavour):
    state, sizes = fixture(f"seed2_quantizer_{flavour}")
    torch.save(below(state, "visual_encoder."), tmp_path / "eva_vit_g.pth")
    torch.save(
        {key: value for key, value in state.items() if not key.startswith("visual_encoder.")},
        tmp_path / "seed_quantizer.pt",
    )
    (tmp_path / "stable-diffusion-2-1-unclip").symlink_to(folder)
    heads = HeadCounts(sizes["vit"]["num_heads"], sizes["bert"]["num_attention_heads"], sizes["block_heads"])
    row = load_seed2_row("seed2", tmp_path, heads)
    row.num_inference_steps = 2
    assert isinstance(row, ImageTokenizer) and BASELINES["seed2"].family.builder.endswith(":load_seed2_row")
    images = noise_images(2, 40, 56)
    tokens = row.encode(images)
    decoded = row.decode(tokens, (40, 56), seeded())
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    torch.testing.assert_close(row.decode(tokens[1:], (40, 56), seeded()), decoded[1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(row.bits(tokens), torch.full((2,), 32 * math.log2(sizes["n_embed"])))


def test_other_models_are_refused(folder, tmp_path):
    for part in folder.iterdir():
        if part.name != "unet":
            (tmp_path / part.name).symlink_to(part)
    diffusers.UNet2DConditionModel(**UNET, cross_attention_dim=STATES).save_pretrained(tmp_path / "unet")
    with pytest.raises(HybridTokenizerError, match="it is no unCLIP model"):
        load_unclip(tmp_path)
    (tmp_path / "scheduler").unlink()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (tmp_path / "unet").rename(tmp_path / "plain")
    (tmp_path / "unet").symlink_to(folder / "unet")
    with pytest.raises(HybridTokenizerError, match="names the class 'UNet2DModel', expected one of DDIMScheduler"):
        load_unclip(tmp_path)
