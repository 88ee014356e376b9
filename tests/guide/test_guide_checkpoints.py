from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from guide_models import images, jitter, small_movq

from hybrid_tokenizer.checkpoints.files import load_strict, load_tensors, save_tensors, write_json
from hybrid_tokenizer.checkpoints.keys.movqgan import diffusers_vq_to_guide, movqgan_to_guide
from hybrid_tokenizer.checkpoints.keys.taming import taming_to_guide
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.guide.warm_start import read_base

GOLDEN = Path(__file__).parents[1] / "golden"


def movqgan_state() -> dict[str, torch.Tensor]:
    stored = load_tensors(GOLDEN / "movq_a.safetensors")
    return {key.removeprefix("state."): value.float() for key, value in stored.items() if key.startswith("state.")}


def test_losses_and_averages_are_dropped_and_nothing_else():
    state = movqgan_state()
    extra = {"loss.discriminator.main.0.weight": torch.zeros(1), "ema_encoder.conv_inweight": torch.zeros(1)}
    converted, sizes = movqgan_to_guide({**state, **extra})
    assert len(converted) == len(state)
    load_strict(GuideTokenizer(GuideConfig.from_dict(sizes)), converted, "test")
    with pytest.raises(HybridTokenizerError, match=r"no rule for 1 keys: encoder\.extra\.weight"):
        movqgan_to_guide({**state, "encoder.extra.weight": torch.zeros(1)})
    lacking = {key: value for key, value in converted.items() if key != "decoder.conv_in.bias"}
    with pytest.raises(HybridTokenizerError, match=r"1 missing: decoder\.conv_in\.bias"):
        load_strict(GuideTokenizer(GuideConfig.from_dict(sizes)), lacking, "test")


def test_a_gumbel_file_is_refused():
    state = {key: value for key, value in movqgan_state().items() if not key.startswith("quantize.")}
    with pytest.raises(HybridTokenizerError, match=r"no quantize\.embedding\.weight; a Gumbel VQGAN"):
        taming_to_guide({**state, "quantize.embed.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("norm_type", "latent_channels", "vq_embed_dim"), [("spatial", 4, None), ("spatial", 4, 4), ("group", 6, 3)]
)
def test_diffusers_movq_folder(norm_type, latent_channels, vq_embed_dim):
    model = VQModel(
        block_out_channels=(32, 32, 64), layers_per_block=1, latent_channels=latent_channels, vq_embed_dim=vq_embed_dim,
        num_vq_embeddings=50, norm_type=norm_type, norm_num_groups=32, lookup_from_codebook=False,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    jitter(model).eval()
    converted, sizes = diffusers_vq_to_guide(model.state_dict(), dict(model.config))
    tokenizer = GuideTokenizer(GuideConfig.from_dict(sizes)).eval()
    load_strict(tokenizer, converted, "test")
    batch = images()
    with torch.no_grad():
        torch.testing.assert_close(tokenizer(batch).guide_images, model(batch).sample, rtol=0, atol=2e-5)


def test_old_attention_names_of_diffusers(tmp_path):
    tokenizer = GuideTokenizer(small_movq())
    config = {
        "block_out_channels": [32] * 4, "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3, "latent_channels": 4,
        "num_vq_embeddings": 64, "norm_type": "spatial",
    }  # fmt: skip
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for key, value in tokenizer.state_dict().items():
        name = key.replace("quantizer.", "quantize.")
        for new, before in old.items():
            name = name.replace(new, before)
        state[name] = value
    save_tensors(tmp_path / "diffusion_pytorch_model.safetensors", state)
    write_json(tmp_path / "config.json", config)
    converted, guide_config = read_base(tmp_path)
    assert guide_config.encoder_channels == [32] * 4
    load_strict(tokenizer, converted, "test")
    with pytest.raises(HybridTokenizerError, match="no attention in its middle block"):
        diffusers_vq_to_guide(state, {**config, "mid_block_add_attention": False})


@pytest.mark.parametrize("kind", ["movq", "taming_vqgan"])
def test_sizes_are_read_off_the_weights(kind):
    stored = load_tensors(GOLDEN / f"{kind}_a.safetensors")
    state = {key.removeprefix("state."): value.float() for key, value in stored.items() if key.startswith("state.")}
    _, sizes = (movqgan_to_guide if kind == "movq" else taming_to_guide)(state)
    config = GuideConfig.from_dict(sizes)
    assert config.downsample_factor == config.upsample_factor == (8 if kind == "movq" else 16)
    assert config.norm_type == ("spatial" if kind == "movq" else "group")
    assert config.encoder_attention == config.decoder_attention == [len(config.encoder_channels) - 1]
