"""Every decode option through everything that decodes: it is understood, has its effect, and has the same one everywhere."""

import dataclasses

import pytest
import torch
from helpers.small_models import noise_images, small_hybrid

from hybrid_tokenizer.diffusion import DecodeOptions
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import GuideOfHybrid, GuideOnly, HybridRow, WrongSemantics
from hybrid_tokenizer.evaluation.rows import hybrid_row, variant_row
from hybrid_tokenizer.hybrid import image_generators

SIZE = (32, 48)
CHANGES = {
    "start": "linear_estimate",
    "strength": 0.8,
    "num_inference_steps": 20,
    "guidance_scale": 3,
    "eta": 0.5,
    "inversion_condition": "null",
    "num_fixed_point_iterations": 2,
    "sampler": "lcm",
}
BESIDE = {"sampler": {"start": "add_noise"}}


def seeded():
    return torch.Generator().manual_seed(0)


def through_the_decoder(hybrid, images, **options):
    tokens = hybrid.encode(images)
    indices = [tokens.semantic_indices, *tokens.guide_indices]
    return hybrid.diffusion.decode(
        hybrid.decode_guide(tokens.guide_indices, tokens.image_size),
        hybrid.semantic.decode(tokens.semantic_indices),
        SIZE,
        generator=image_generators(indices, seeded()),
        **options,
    )


def through_decode_indices(hybrid, images, **options):
    tokens = hybrid.encode(images)
    indices = (tokens.semantic_indices, tokens.guide_indices)
    return hybrid.decode_indices(*indices, tokens.image_size, generator=seeded(), **options)


def through_a_row(row, images):
    return row.decode(row.encode(images), SIZE, seeded())


def through_wrong_semantics(hybrid, images, **options):
    row = WrongSemantics(hybrid, **options)
    return row.decode(row.encode_pair(images, images), SIZE, seeded())


DOORS = {
    "DiffusionDecoder.decode": through_the_decoder,
    "decode": lambda hybrid, images, **options: hybrid.decode(hybrid.encode(images), generator=seeded(), **options),
    "decode_indices": through_decode_indices,
    "reconstruct": lambda hybrid, images, **options: hybrid.reconstruct(images, seeded(), **options),
    "HybridRow": lambda hybrid, images, **options: through_a_row(HybridRow(hybrid, **options), images),
    "WrongSemantics": through_wrong_semantics,
    "hybrid_row": lambda hybrid, images, **options: through_a_row(hybrid_row(hybrid, **options), images),
    "variant_row": lambda hybrid, images, **options: through_a_row(
        variant_row(hybrid, hybrid_row(hybrid, **options).name), images
    ),
}


@pytest.fixture(scope="module")
def hybrid():
    hybrid = small_hybrid(start="ddim_inversion")
    hybrid.diffusion.add_guide_conditioning()
    hybrid.diffusion.set_guide_residual([0.1] * 4)
    with torch.no_grad():
        hybrid.diffusion.unet.conv_out.weight.normal_(0, 0.3)
    return hybrid


@pytest.fixture(scope="module")
def plain(hybrid):
    """Without the option, but with what stands beside it."""
    images = noise_images(2)
    return {name: through_the_decoder(hybrid, images, **BESIDE.get(name, {})) for name in CHANGES}


def test_no_option_is_left_out():
    assert list(CHANGES) == [field.name for field in dataclasses.fields(DecodeOptions)]


@pytest.mark.parametrize("option", CHANGES)
@pytest.mark.parametrize("door", DOORS)
def test_an_option_has_its_effect_through_every_door(hybrid, plain, door, option):
    options = {option: CHANGES[option]} | BESIDE.get(option, {})
    images = noise_images(2)
    decoded = DOORS[door](hybrid, images, **options)
    assert (decoded - plain[option]).abs().max() > 1e-3
    assert torch.equal(decoded, through_the_decoder(hybrid, images, **options))


@pytest.mark.parametrize("door", [door for door in DOORS if door != "variant_row"])
def test_an_unknown_option_is_named_at_every_door(hybrid, door):
    with pytest.raises(HybridTokenizerError, match=r"unknown decode options strenght; use some of start, strength"):
        DOORS[door](hybrid, noise_images(1), strenght=0.4)


@pytest.mark.parametrize("row", [GuideOnly, GuideOfHybrid])
def test_a_row_without_diffusion_takes_no_decode_option(hybrid, row):
    with pytest.raises(TypeError, match="strength"):
        row(hybrid, strength=0.4)
