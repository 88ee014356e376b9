"""What comes in and out of folders: our own, exactly; Stable Diffusion's, as they are published; and what is refused."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_diffusion import UNET, VAE, make_decoder
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hybrid_tokenizer.diffusion import DecodeOptions, DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError

# scheduler/scheduler_config.json as Stable Diffusion 1.5 is published
SD15_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
LENGTH = 7


def assert_same_pictures(ours, theirs):
    """Equal weights give equal pictures up to rounding: kernels depend on where in memory the weights lie."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder laid out like a published Stable Diffusion 1.5, at test size."""
    folder = tmp_path_factory.mktemp("sd15")
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**{**VAE, "scaling_factor": 0.18215}).save_pretrained(folder / "vae")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(c + "</w>" for c in "abcdefghij")]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=LENGTH)
    tokenizer.save_pretrained(folder / "tokenizer")
    text_config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(text_config).save_pretrained(folder / "text_encoder")
    write_scheduler(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@pytest.fixture
def folder(published, tmp_path):
    """A copy to damage: links, and a scheduler file of its own."""
    for part in ("unet", "vae", "tokenizer", "text_encoder"):
        (tmp_path / part).mkdir()
        for file in (published / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    write_scheduler(tmp_path)
    return tmp_path


def write_scheduler(folder, **changes):
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**SD15_SCHEDULER, **changes}))


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_refused(folder, message, **options):
    with pytest.raises(HybridTokenizerError, match=message) as error:
        DiffusionDecoder.from_pretrained(folder, **options)
    assert "\n" not in str(error.value)


# our own folders
@pytest.mark.parametrize("shards", ["10GB", "40KB"])
def test_own_folder_round_trips_exactly(tmp_path, guide_images, embeds, shards):
    decoder = make_decoder(prediction_type="v_prediction", decode_defaults=DecodeOptions(strength=0.5))
    decoder.set_latent_scale([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0])
    decoder.save_pretrained(tmp_path / "own", max_shard_size=shards)
    loaded = DiffusionDecoder.from_pretrained(tmp_path / "own")
    assert loaded.config == decoder.config and not loaded.training
    loaded.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "unet" / "config.json").read_text()
    for key, value in decoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    before = decoder.decode(guide_images, embeds, (32, 48), num_inference_steps=4)
    assert_same_pictures(loaded.decode(guide_images, embeds, (32, 48), num_inference_steps=4), before)
    assert len(list((tmp_path / "own" / "unet").glob("*.safetensors"))) == (1 if shards == "10GB" else 12)


def test_half_precision_storage_leaves_the_decoder_alone(tmp_path):
    decoder = make_decoder()
    decoder.save_pretrained(tmp_path, dtype=torch.float16)
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
    assert {v.dtype for v in load_file(tmp_path / "unet" / WEIGHTS).values()} == {torch.float16}
    loaded = DiffusionDecoder.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.unet.conv_in.weight, decoder.unet.conv_in.weight, atol=1e-3, rtol=1e-3)
    half = DiffusionDecoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_guide_conditioned_folder_round_trips(tmp_path, guide_images, embeds):
    decoder = make_decoder()
    decoder.add_guide_conditioning()
    torch.nn.init.normal_(decoder.unet.conv_in.weight, std=0.1)
    decoder.save_pretrained(tmp_path)
    loaded = DiffusionDecoder.from_pretrained(tmp_path)
    expected = decoder.decode(guide_images, embeds, (32, 48), num_inference_steps=4)
    assert_same_pictures(loaded.decode(guide_images, embeds, (32, 48), num_inference_steps=4), expected)


def test_diffusers_reads_our_folder(tmp_path, decoder):
    decoder.save_pretrained(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert torch.equal(unet.conv_in.weight, decoder.unet.conv_in.weight)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert torch.equal(scheduler.alphas_cumprod, decoder.schedule.alphas_cumprod)
    assert scheduler.config.clip_sample is False and scheduler.config.set_alpha_to_one is False


def test_own_folder_with_another_prediction_type_in_its_scheduler_is_refused(tmp_path):
    make_decoder(prediction_type="v_prediction").save_pretrained(tmp_path)
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    assert_refused(tmp_path, r"'v_prediction'.*'epsilon'")


def test_own_folder_with_unknown_entries_is_refused(tmp_path, decoder):
    decoder.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", sampler="euler")
    assert_refused(tmp_path, r"has unknown entries 'sampler'")


# published folders
def test_published_folder_equals_the_pipeline(published):
    decoder = DiffusionDecoder.from_pretrained(published, decode_defaults=DecodeOptions(guidance_scale=7.5))
    assert decoder.config.latent_scale == [0.18215] and decoder.config.prediction_type == "epsilon"
    assert decoder.config.num_condition_tokens == LENGTH
    pipeline = StableDiffusionPipeline(
        vae=decoder.vae,
        unet=decoder.unet,
        scheduler=DDIMScheduler(**decoder.schedule.diffusers_config),
        text_encoder=CLIPTextModel.from_pretrained(published / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(published / "tokenizer"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, LENGTH, 12)
    theirs = pipeline(
        prompt_embeds=embeds,
        num_inference_steps=10,
        height=32,
        width=48,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    ours = decoder.decode(None, embeds, (32, 48), num_inference_steps=10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours, theirs * 2 - 1, atol=1e-5, rtol=0)


def test_old_attention_names_of_published_vaes_load(published, folder):
    path = folder / "vae" / WEIGHTS
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(key):
        for new, before in names.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{before}.")
        return key

    state = {old(key): value for key, value in load_file(path).items()}
    assert any(".query." in key for key in state)
    save_file(state, path, metadata={"format": "pt"})
    expected, loaded = DiffusionDecoder.from_pretrained(published), DiffusionDecoder.from_pretrained(folder)
    for key, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_v_prediction_folder(folder):
    write_scheduler(folder, _class_name="DDIMScheduler", prediction_type="v_prediction")
    assert DiffusionDecoder.from_pretrained(folder).schedule.prediction_type == "v_prediction"
    assert_refused(folder, r"prediction_type= says 'epsilon'.*'v_prediction'", prediction_type="epsilon")


def test_tiny_vae_in_place_of_the_published_one(folder):
    for file in (folder / "vae").iterdir():
        file.unlink()
    tiny = {"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4}
    AutoencoderTiny(**tiny).save_pretrained(folder / "vae")
    decoder = DiffusionDecoder.from_pretrained(folder)
    assert decoder.config.vae_class == "AutoencoderTiny" and decoder.config.latent_scale == [1.0]
    decoder.save_pretrained(folder / "own")
    assert DiffusionDecoder.from_pretrained(folder / "own").config == decoder.config


@pytest.mark.parametrize(
    "sampler",
    [
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "interpolation_type": "linear"},
        {"_class_name": "DDIMScheduler", "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "trailing"},
    ],
)
def test_another_sampler_of_the_same_model_is_replaced(folder, published, sampler):
    write_scheduler(folder, **sampler)
    decoder, expected = DiffusionDecoder.from_pretrained(folder), DiffusionDecoder.from_pretrained(published)
    assert decoder.schedule.steps(20) == expected.schedule.steps(20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_sample": True}, "clip_sample=True, expected False"),
        ({"thresholding": True}, "thresholding=True"),
        ({"beta_schedule": "linear"}, "beta_schedule='linear', expected 'scaled_linear'"),
        ({"beta_schedule": None}, "beta_schedule=None"),
        ({"beta_start": 0.0001}, "beta_start=0.0001"),
        ({"num_train_timesteps": 4000}, "num_train_timesteps=4000"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
    ],
)
def test_schedulers_of_other_models_are_refused(folder, changes, message):
    write_scheduler(folder, **changes)
    assert_refused(folder, message)


def test_stable_diffusion_2_for_768_pixels_with_epsilon_settings_is_refused(folder):
    wide = {**UNET, "cross_attention_dim": 1024, "sample_size": 96}
    UNet2DConditionModel(**wide).save_pretrained(folder / "unet")
    assert_refused(folder, "says 'epsilon'.*predicts v")
    write_scheduler(folder, prediction_type="v_prediction")
    assert_refused(folder, r"null condition has shape \(1, 7, 12\), expected \(1, 7, 1024\)")


def test_missing_and_damaged_parts_are_refused(folder):
    unet = folder / "unet" / WEIGHTS
    state = load_file(unet)
    save_file({k: v for k, v in state.items() if k != "conv_in.weight"}, unet, metadata={"format": "pt"})
    assert_refused(folder, "unet.*1 missing: conv_in.weight")
    save_file({**state, "extra": torch.zeros(1)}, unet, metadata={"format": "pt"})
    assert_refused(folder, "1 unexpected: extra")
    save_file({**state, "conv_in.weight": torch.zeros(1)}, unet, metadata={"format": "pt"})
    assert_refused(folder, "unet")
    unet.write_bytes(unet.read_bytes()[:1000])
    assert_refused(folder, "unet")
    unet.unlink()
    assert_refused(folder, "unet")
    save_file(state, unet, metadata={"format": "pt"})

    text_encoder = folder / "text_encoder" / "model.safetensors"
    whole = load_file(text_encoder)
    save_file(dict(list(whole.items())[1:]), text_encoder, metadata={"format": "pt"})
    assert_refused(folder, "text encoder.*lacks")
    save_file(whole, text_encoder, metadata={"format": "pt"})

    (folder / "tokenizer").rename(folder / "elsewhere")
    assert_refused(folder, "neither null_condition.safetensors nor both text_encoder/ and tokenizer/")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert_refused(folder, "scheduler_config.json does not exist")
    assert_refused(folder / "nowhere", "nowhere does not exist")


def test_inpainting_folder_is_refused(folder):
    UNet2DConditionModel(**{**UNET, "in_channels": 9}).save_pretrained(folder / "unet")
    assert_refused(folder, "9 input.*inpainting")


def test_hub_id_is_fetched_once_and_failure_is_one_line(published, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, token, allow_patterns):
        asked.append((name, revision, token))
        if name == "nobody/nothing":
            raise OSError("offline\nsecond line")
        return str(published)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    decoder = DiffusionDecoder.from_pretrained("owner/name", revision="abc", token="secret")
    assert decoder.config.num_condition_tokens == LENGTH
    assert asked == [("owner/name", "abc", "secret")]
    assert_refused("nobody/nothing", "nobody/nothing is no folder here and cannot be fetched from the hub: .*offline")
