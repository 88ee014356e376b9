"""SEED and LaVIT from folders in their published form, with the fixtures' weights and small diffusion models."""

import json
import math
from pathlib import Path

import diffusers
import pytest
import torch
from helpers.small_models import noise_images

from hybrid_tokenizer.baselines.lavit import draw_kept, load_lavit_row, read_null_states
from hybrid_tokenizer.baselines.loading import load_baseline
from hybrid_tokenizer.baselines.sampling import Condition, sample
from hybrid_tokenizer.baselines.seed import load_seed_row
from hybrid_tokenizer.checkpoints.files import load_tensors
from hybrid_tokenizer.diffusion import DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.protocol import ImageTokenizer
from hybrid_tokenizer.semantic.conversion import HeadCounts

GOLDEN = Path(__file__).parents[1] / "golden"
UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 2,
}  # fmt: skip
VAE = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "scaling_factor": 0.5,
}  # fmt: skip


def fixture(name):
    stored = load_tensors(GOLDEN / f"{name}_a.safetensors")
    state = {key.removeprefix("state."): value.float() for key, value in stored.items() if key.startswith("state.")}
    return state, json.loads((GOLDEN / f"{name}_a.json").read_text())["config"]


def below(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def seed_row(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    state, sizes = fixture("seed1_quantizer")
    torch.save(below(state, "visual_encoder."), folder / "eva_vit_g.pth")
    rest = {key: value for key, value in state.items() if not key.startswith("visual_encoder.")}
    qformer = {key: value for key, value in rest.items() if key.startswith(("Qformer.", "query_tokens"))}
    torch.save({"model": qformer}, folder / "causal_qformer.pth")
    torch.save({"model": {k: v for k, v in rest.items() if k not in qformer}}, folder / "seed_tokenizer.pth")
    config = DiffusionConfig(
        unet={**UNET, "cross_attention_dim": sizes["text_features_dim"]}, vae_class="AutoencoderKL", vae=VAE,
        latent_scale=[0.5], prediction_type="epsilon", num_condition_tokens=sizes["num_reverse_token"],
    )  # fmt: skip
    torch.manual_seed(0)
    DiffusionDecoder(config).save_pretrained(folder / "stable-diffusion-v1-4")
    heads = HeadCounts(sizes["vit"]["num_heads"], sizes["bert"]["num_attention_heads"], sizes["block_heads"])
    row = load_seed_row("seed", folder, heads)
    row.num_inference_steps = 2
    return row


@pytest.fixture(scope="module", params=["lavit", "lavit_lowres"])
def lavit_row(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return make_lavit(request.param, folder)


def make_lavit(name, folder, heads=4):
    state, sizes = fixture("lavit_tokenizer")
    files, pixels = (
        folder / "visual_tokenizer",
        folder / ("pixel_decoding" if "low" in name else "highres_pixel_decoding"),
    )
    files.mkdir()
    tokenizer = below(state, "tokenizer.")
    torch.save(below(tokenizer, "encoder."), files / "eva_vitg_psz14.bin")
    rest = {key: value for key, value in tokenizer.items() if not key.startswith("encoder.")}
    torch.save(rest, files / "tokenizer_encoder.bin")
    torch.save(below(state, "decoder_lowres."), files / "tokenizer_decoder.bin")
    torch.save(below(state, "decoder_highres."), files / "highres_tokenizer_decoder.bin")
    first, second = sizes["unet_proj_dims"]
    options = {"cross_attention_dim": first}
    if "low" not in name:
        options = {
            "cross_attention_dim": first + second, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": second + 6 * 4,
        }  # fmt: skip
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(**UNET, **options).save_pretrained(pixels / "unet", safe_serialization=False)
    diffusers.AutoencoderKL(**VAE).save_pretrained(pixels / "vae")
    diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        pixels / "scheduler"
    )
    torch.save(torch.randn(1, 7, first), pixels / "uncond_embeddings.bin")
    row = load_lavit_row(name, folder, heads)
    row.num_inference_steps = 2
    return row


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_seed_is_a_row(seed_row):
    images = noise_images(2, 40, 56)
    assert isinstance(seed_row, ImageTokenizer)
    tokens = seed_row.encode(images)
    decoded = seed_row.decode(tokens, (40, 56), seeded())
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    assert torch.equal(decoded, seed_row.decode(tokens, (40, 56), seeded()))
    assert not torch.equal(decoded, seed_row.decode(tokens, (40, 56), seeded(1)))
    torch.testing.assert_close(seed_row.decode(tokens[1:], (40, 56), seeded()), decoded[1:], rtol=0, atol=1e-4)
    count = seed_row.semantic.num_queries
    assert seed_row.num_tokens(tokens).tolist() == [count] * 2
    torch.testing.assert_close(
        seed_row.bits(tokens), torch.full((2,), count * math.log2(seed_row.semantic.codebook_size))
    )


def test_seed_is_the_pipeline_of_diffusers_on_given_embeddings(seed_row):
    tokens = seed_row.encode(noise_images(1, 32, 32))
    diffusion, states = seed_row.diffusion, seed_row.semantic.decode(tokens)
    pipe = diffusers.StableDiffusionPipeline(
        vae=diffusion.vae, unet=diffusion.unet, scheduler=seed_row.scheduler, text_encoder=None, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    side = diffusion.config.unet["sample_size"]
    noise = torch.randn(1, 4, side, side, generator=seeded(0))
    expected = pipe(
        prompt_embeds=states, negative_prompt_embeds=diffusion.null_condition, latents=noise, height=16, width=16,
        num_inference_steps=4, guidance_scale=7.5, output_type="latent",
    ).images  # fmt: skip
    latents = sample(
        diffusion.unet, seed_row.scheduler, Condition(states), Condition(diffusion.null_condition), (side, side),
        num_inference_steps=4, guidance_scale=7.5, generators=[seeded(0)],
    )  # fmt: skip
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)


def test_lavit_is_a_row_of_varying_length(lavit_row):
    images = noise_images(3, 40, 56)
    assert isinstance(lavit_row, ImageTokenizer)
    tokens = lavit_row.encode(images, seeded())
    counts = lavit_row.num_tokens(tokens)
    assert counts.tolist() == [len(indices) for indices in tokens.indices] and counts.min() >= 1
    torch.testing.assert_close(lavit_row.bits(tokens), counts.float() * math.log2(64))
    decoded = lavit_row.decode(tokens, (40, 56), seeded())
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    alone = lavit_row.encode(images[2:], seeded())
    assert torch.equal(alone.indices[0], tokens.indices[2])
    torch.testing.assert_close(lavit_row.decode(alone, (40, 56), seeded()), decoded[2:], rtol=0, atol=1e-4)
    others = lavit_row.encode(images, seeded(5))
    assert any(len(a) != len(b) or not torch.equal(a, b) for a, b in zip(tokens.indices, others.indices, strict=True))


def test_patches_are_kept_as_often_as_their_probability_says():
    keep = torch.tensor([0.1, 0.5, 0.9]).repeat(4000)[None]
    log_probs = torch.stack([keep, 1 - keep], dim=-1).log()
    rates = draw_kept(log_probs, seeded())[0].float().reshape(-1, 3).mean(dim=0)
    torch.testing.assert_close(rates, keep[0, :3], rtol=0, atol=0.03)
    assert draw_kept(torch.tensor([[[-50.0, 0.0], [-40.0, 0.0]]]), seeded()).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nn.Linear, "cannot be read safely (it names torch.nn.modules.linear.Linear); it is incomplete or holds more than tensors: download it again, or convert it to safetensors where you trust it"),
        ({"a": torch.ones(1)}, "is not a floating tensor of shape 1 x n x d; download it again"),
        (torch.ones(1, 2, 3, dtype=torch.int64), "is not a floating tensor of shape 1 x n x d; download it again"),
        (torch.ones(0, 2, 3), "is not a floating tensor of shape 1 x n x d; download it again"),
    ],
)  # fmt: skip
def test_a_null_condition_of_another_kind_is_one_line(value, message, tmp_path):
    torch.save(value, tmp_path / "uncond_embeddings.bin")
    with pytest.raises(HybridTokenizerError) as caught:
        read_null_states(tmp_path / "uncond_embeddings.bin")
    assert str(caught.value).removeprefix("checkpoint ") == f"{tmp_path}/uncond_embeddings.bin {message}"


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(HybridTokenizerError, match="is not a folder; give a folder with visual_tokenizer/"):
        load_baseline("lavit", tmp_path / "nowhere")
    with pytest.raises(HybridTokenizerError, match="does not exist"):
        load_baseline("lavit", tmp_path)
    with pytest.raises(HybridTokenizerError, match=r"\S"):
        load_baseline("seed", tmp_path)
    make_lavit("lavit", tmp_path)
    (tmp_path / "visual_tokenizer" / "tokenizer_decoder.bin").rename(
        tmp_path / "visual_tokenizer" / "highres_tokenizer_decoder.bin"
    )
    with pytest.raises(HybridTokenizerError, match="is the other decoder of the two"):
        load_lavit_row("lavit", tmp_path, 4)
