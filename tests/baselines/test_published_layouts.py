import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hybrid_tokenizer.baselines import loading, registry
from hybrid_tokenizer.baselines.lavit import LavitConfig, LavitDecoderConfig, build_token_decoder, build_tokenizer
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.layouts import layouts

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = Path(__file__).parent / "keys"


def meta_state(layout):
    return {key: torch.empty(shape, device="meta") for key, shape in layout.items()}


def build_on_meta(name, state):
    builder = loading.function_of(registry.BASELINES[name].family.builder)
    with torch.device("meta"):
        return builder(state, name)


def fixture_layout(kind):
    with safe_open(GOLDEN / f"{kind}_a.safetensors", "np") as file:
        keys = [key for key in file.keys() if key.startswith("state.")]  # noqa: SIM118
        return {key.removeprefix("state."): tuple(file.get_slice(key).get_shape()) for key in keys}


def layout_of_fixture(kind):
    description = json.loads((GOLDEN / f"{kind}_a.json").read_text())
    config = description["config"]
    if kind.startswith("titok"):
        vq, sizes = config["model"]["vq_model"], description["size_overrides"]
        grid = config["dataset"]["preprocessing"]["crop_size"] // vq["vit_enc_patch_size"]
        body, pixels = (sizes["width"], sizes["layers"]), sizes["pixel_decoder"]
        if pixels:
            pixels = (1024, pixels["z_channels"], [pixels["hidden_channels"]] * 4, pixels["num_res_blocks"])
        return layouts.titok(
            grid, vq["vit_enc_patch_size"], vq["num_latent_tokens"], body, body, vq["codebook_size"], vq["token_size"], pixels
        )  # fmt: skip
    body = config.get("ddconfig", config)
    widths, blocks, z = layouts.widths_of(body["ch"], body["ch_mult"]), body["num_res_blocks"], body["z_channels"]
    if kind == "var_vqvae":
        return layouts.var(widths, blocks, z, config["vocab_size"], len(config["v_patch_nums"]))
    if kind == "llamagen_vq":
        return layouts.llamagen(widths, blocks, z, config["codebook_embed_dim"], config["codebook_size"])
    if kind == "magvit2_lfq":
        return layouts.magvit2(widths, blocks, config["embed_dim"])
    levels = [i for i in range(len(widths)) if body["resolution"] // 2**i in body["attn_resolutions"]]
    if kind == "taming_gumbel":
        return layouts.gumbel(widths, blocks, config["embed_dim"], config["n_embed"], levels)
    return layouts.taming(widths, blocks, z, config["embed_dim"], config["n_embed"], levels, spatial=kind == "movq")


@pytest.mark.parametrize(
    "kind",
    [
        "movq",
        "taming_vqgan",
        "taming_gumbel",
        "var_vqvae",
        "magvit2_lfq",
        "ibq",
        "llamagen_vq",
        "titok_legacy",
        "titok_rgb",
    ],
)
def test_the_layouts_here_are_the_references_at_fixture_size(kind):
    assert layout_of_fixture(kind) == fixture_layout(kind)


def test_every_foreign_layout_of_the_registry_is_written_out():
    rows = {name for name, baseline in registry.BASELINES.items() if baseline.family.reads == "row"}
    assert rows == {"seed", "seed2", "lavit", "lavit_lowres", "dalle"}
    assert set(layouts.PUBLISHED) == set(registry.BASELINES) - set(layouts.KANDINSKY) - rows


@pytest.mark.parametrize("name", layouts.PUBLISHED)
def test_published_layout_at_full_size(name):
    model = build_on_meta(name, meta_state(layouts.PUBLISHED[name]))
    baseline = registry.BASELINES[name]
    loading.check_published(name, baseline, model, Path(name))
    if name in layouts.PARAMETERS:
        count = sum(p.numel() for p in model.parameters()) / 1e6
        assert count == pytest.approx(layouts.PARAMETERS[name], abs=0.06)
    if baseline.family.fixed_size:
        assert model.config.image_size == 256


@pytest.mark.parametrize("name", ["vqgan_gumbel_f8", "magvit2_16384", "titok_s128"])
def test_missing_misshapen_and_foreign_keys_are_refused_with_the_list(name):
    layout = layouts.PUBLISHED[name]
    key = "pixel_decoder.conv_out.bias" if name.startswith("titok") else "decoder.conv_out.bias"
    copy = "model_ema." + key.replace(".", "")
    lacking = {k: s for k, s in layout.items() if k not in (key, copy)}
    with pytest.raises(HybridTokenizerError, match=r"1 missing: \S*conv_out\.bias"):
        build_on_meta(name, meta_state(lacking))
    changed = layout | {k: (4,) for k in (key, copy) if k in layout}
    with pytest.raises(
        HybridTokenizerError, match=r"1 misshapen: \S*conv_out\.bias \(4,\) in the file, \(3,\) in the model"
    ):
        build_on_meta(name, meta_state(changed))
    foreign = "decoder.surplus.weight"
    surplus = layout | {foreign: (1,)} | ({"model_ema.decodersurplusweight": (1,)} if copy in layout else {})
    with pytest.raises(HybridTokenizerError, match=r"no rule for 1 keys: decoder\.surplus\.weight"):
        build_on_meta(name, meta_state(surplus))


def test_averages_must_cover_all_weights():
    layout = dict(layouts.PUBLISHED["ibq_1024"])
    del layout["model_ema.quant_convweight"]
    with pytest.raises(HybridTokenizerError, match=r"1 weights without an average: quant_conv\.weight"):
        build_on_meta("ibq_1024", meta_state(layout))
    layout |= {"model_ema.quant_convweight": (256, 256, 1, 1), "model_ema.strange": (1,)}
    with pytest.raises(HybridTokenizerError, match=r"1 averages without a weight: model_ema\.strange"):
        build_on_meta("ibq_1024", meta_state(layout))


def read_keys(name):
    return {key: tuple(shape) for key, shape in json.loads((KEYS / f"{name}.json").read_text()).items()}


def test_lavit_at_full_size():
    layout = read_keys("lavit_tokenizer_encoder")
    with torch.device("meta"):
        model = build_tokenizer(meta_state(layout), "tokenizer_encoder.bin")
    assert model.config == LavitConfig()
    assert len(layout) == 813
    for name, expected in (
        ("lavit_tokenizer_decoder_lowres", LavitDecoderConfig()),
        ("lavit_highres_tokenizer_decoder", LavitDecoderConfig(condition_widths=[768, 1280], pooled_width=1280)),
    ):
        with torch.device("meta"):
            decoder = build_token_decoder(meta_state(read_keys(name)), name)
        assert decoder.config == expected
