"""Decode options as values: one set of names, overriding, and what folders from before `linear_estimate` mean."""

import dataclasses
import json
from typing import get_type_hints

import pytest
import torch
from tiny_diffusion import make_decoder

from hybrid_tokenizer.checkpoints.files import read_json
from hybrid_tokenizer.diffusion import DecodeOptions, DecodeOverrides, DiffusionConfig, DiffusionDecoder
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.presets import PRESETS


def test_every_option_can_be_overridden_and_nothing_else():
    assert list(get_type_hints(DecodeOverrides)) == [field.name for field in dataclasses.fields(DecodeOptions)]


def test_an_override_keeps_what_it_does_not_name():
    options = DecodeOptions(strength=0.3, eta=0.5)
    assert options.override() == options
    changed = options.override(strength=1, guidance_scale=None, sampler=None)
    assert changed == DecodeOptions(strength=1.0, eta=0.5) and isinstance(changed.strength, float)
    assert options.strength == 0.3


def test_an_unknown_option_is_named():
    with pytest.raises(
        HybridTokenizerError, match=r"unknown decode options progres, strenght; use some of start, stren"
    ):
        DecodeOptions().override(strenght=0.4, progres=True)


@pytest.mark.parametrize(
    ("options", "deterministic"),
    [
        ({"start": "ddim_inversion"}, True),
        ({"start": "linear_estimate"}, True),
        ({"start": "linear_estimate", "eta": 0.1}, False),
        ({"start": "add_noise"}, False),
        ({"start": "add_noise", "sampler": "lcm"}, False),
    ],
)
def test_what_draws_noise_says_so(options, deterministic):
    assert DecodeOptions(**options).deterministic == deterministic


@pytest.mark.parametrize(
    ("stored", "meaning"),
    [
        ({"start": "ddim_inversion", "inversion_condition": "guide"}, {"start": "linear_estimate"}),
        ({"inversion_condition": "guide", "strength": 0.2}, {"start": "linear_estimate", "strength": 0.2}),
        ({"start": "add_noise", "inversion_condition": "guide"}, {"start": "add_noise"}),
        ({"start": "ddim_inversion", "inversion_condition": "null"}, {"inversion_condition": "null"}),
    ],
)
def test_the_old_pair_is_read_as_the_start_that_it_was(stored, meaning):
    before = dict(stored)
    assert DecodeOptions.from_dict(stored) == DecodeOptions(**meaning)
    assert stored == before


def test_an_old_folder_decodes_as_the_new_one(tmp_path, guide_images, embeds):
    decoder = make_decoder()
    decoder.add_guide_conditioning()
    decoder.set_guide_residual([0.1] * 4)
    torch.nn.init.normal_(decoder.unet.conv_out.weight, std=0.1)
    defaults = DecodeOptions(start="linear_estimate", strength=0.4, num_inference_steps=5)
    decoder.config = dataclasses.replace(decoder.config, decode_defaults=defaults)
    decoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["decode_defaults"] |= {"start": "ddim_inversion", "inversion_condition": "guide"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = DiffusionDecoder.from_pretrained(tmp_path)
    assert loaded.config == decoder.config
    torch.testing.assert_close(
        loaded.decode(guide_images, embeds, (32, 48)), decoder.decode(guide_images, embeds, (32, 48))
    )


def test_the_preset_starts_from_the_linear_estimate():
    stored = read_json(PRESETS / "tiny" / "diffusion" / "config.json")
    config = DiffusionConfig.from_dict(stored)
    assert config.decode_defaults == DecodeOptions(start="linear_estimate", strength=0.2, num_inference_steps=10)
    old = stored["decode_defaults"] | {"start": "ddim_inversion", "inversion_condition": "guide"}
    assert DiffusionConfig.from_dict(stored | {"decode_defaults": old}) == config
