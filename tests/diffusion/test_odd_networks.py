"""Odd entries of a diffusion component: names of classes, the null condition, and what only a forward pass reads of a
configuration."""

import pytest
import torch
from helpers.small_models import small_hybrid
from safetensors.torch import save_file
from tiny_diffusion import make_decoder

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.diffusion import DiffusionDecoder
from hybrid_tokenizer.diffusion.pretrained import (
    check_computes,
    failure_explained,
    model_class,
    read_null_condition,
)
from hybrid_tokenizer.errors import HybridTokenizerError

SIZE = (32, 48)


@pytest.mark.parametrize("build", [make_decoder, lambda: small_hybrid().diffusion])
def test_networks_that_fit_pass(build):
    decoder = build()
    check_computes(decoder.unet, decoder.vae, decoder.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_fn": "group"}, "the diffusion component describes no model that can be built (NotImplementedError: "),
        ({"upsampling_scaling_factor": 4}, "the VAE decodes to (1, 3, 256, 256), expected (1, 3, 32, 32); a config.json of the diffusion component is damaged, download it again"),
    ],
)  # fmt: skip
def test_a_folder_with_an_odd_entry_is_one_line(change, message, tmp_path):
    hybrid = small_hybrid()
    hybrid.diffusion.save_pretrained(tmp_path)
    path = tmp_path / "vae" / "config.json"
    write_json(path, read_json(path) | change)
    decoder = DiffusionDecoder.from_pretrained(tmp_path)
    with pytest.raises(HybridTokenizerError) as caught:
        decoder.decode(torch.zeros(1, 3, 16, 24), None, SIZE, strength=0.0)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_another_error_stays_what_it_is():
    decoder = make_decoder()
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        failure_explained(decoder.unet, decoder.vae, decoder.config),
    ):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("name", ["os.system", "StableDiffusionPipeline", "", "__class__"])
def test_a_class_is_looked_up_by_its_known_names_alone(name):
    with pytest.raises(HybridTokenizerError) as caught:
        model_class(name)
    assert str(caught.value) == (
        f"the model class {name!r} is unknown; use one of UNet2DConditionModel, AutoencoderKL, AutoencoderTiny, "
        "AutoencoderTinyLinear"
    )


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(1, 5, 12)},
        {"null_condition": torch.zeros(1, 5, 12, dtype=torch.int64)},
        {"null_condition": torch.zeros(5, 12)},
        {"null_condition": torch.zeros(2, 5, 12)},
    ],
)
def test_a_null_condition_of_another_kind_is_one_line(tensors, tmp_path):
    save_file(tensors, tmp_path / "null_condition.safetensors")
    with pytest.raises(HybridTokenizerError) as caught:
        read_null_condition(tmp_path / "null_condition.safetensors")
    assert str(caught.value) == (
        f"{tmp_path}/null_condition.safetensors holds no floating null_condition of shape 1 x n x d; download it again"
    )
