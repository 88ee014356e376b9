"""Folders in diffusers' form: shards, old names, and what diffusers' own loader lets pass."""

import json

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from hybrid_tokenizer.checkpoints.libraries import load_diffusers_model
from hybrid_tokenizer.errors import HybridTokenizerError

NAME = "diffusion_pytorch_model.safetensors"
KEY = "encoder.layers.0.weight"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    AutoencoderTiny(encoder_block_out_channels=[8] * 4, decoder_block_out_channels=[8] * 4).save_pretrained(tmp_path)
    return tmp_path


def refused(folder):
    with pytest.raises(HybridTokenizerError) as caught:
        load_diffusers_model(folder, AutoencoderTiny)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_loads_what_diffusers_loads(folder):
    images = torch.rand(1, 3, 16, 24)
    theirs = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float16).eval()
    ours = load_diffusers_model(folder, AutoencoderTiny, torch.float16)
    assert {p.dtype for p in ours.parameters()} == {torch.float16} and not ours.training
    assert dict(ours.config)["act_fn"] == theirs.config["act_fn"]
    with torch.no_grad():
        expected = theirs.float().encode(images).latents
        assert torch.equal(ours.float().encode(images).latents, expected)


def test_shards_and_a_pickle_are_read(folder):
    whole = load_diffusers_model(folder, AutoencoderTiny).state_dict()
    torch.save(load_file(folder / NAME), folder / "diffusion_pytorch_model.bin")
    load_model = load_diffusers_model(folder, AutoencoderTiny)
    load_model.save_pretrained(folder / "shards", max_shard_size="10KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    (folder / NAME).unlink()
    for place in (folder, folder / "shards"):
        read = load_diffusers_model(place, AutoencoderTiny).state_dict()
        assert all(torch.equal(read[key], value) for key, value in whole.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight * float("nan"), f"{NAME} has values that are not finite in {KEY}; it is damaged"),
        (lambda weight: weight.to(torch.int8), f"does not fit this AutoencoderTiny: 1 not floating: {KEY} torch.int8;"),
        (lambda weight: weight[:1], f"does not fit this AutoencoderTiny: 1 misshapen: {KEY} (1, 3, 3, 3) in the file"),
    ],
)
def test_weights_that_diffusers_would_take(folder, change, message):
    state = load_file(folder / NAME)
    save_file({**state, KEY: change(state[KEY]).contiguous()}, folder / NAME)
    assert message in refused(folder)


@pytest.mark.parametrize(
    "index",
    [
        None, [], {}, {"weight_map": None}, {"weight_map": {}}, {"weight_map": {KEY: 3}}, {"weight_map": {KEY: None}},
        {"weight_map": {KEY: "../other.safetensors"}}, {"weight_map": {KEY: "/etc/passwd"}}, {"weight_map": {KEY: ""}},
        {"weight_map": {KEY: ".."}},
    ],
)  # fmt: skip
def test_an_index_without_a_map_of_names_to_files(folder, index):
    (folder / f"{NAME}.index.json").write_text(json.dumps(index))
    assert refused(folder) == (
        f"{folder / NAME}.index.json has no weight_map of names to files beside it; download the folder again"
    )


def test_an_index_of_files_that_are_missing_or_lack_a_weight(folder):
    (folder / f"{NAME}.index.json").write_text(json.dumps({"weight_map": {KEY: "gone.safetensors"}}))
    assert refused(folder) == f"{folder / 'gone.safetensors'} does not exist; is {folder} the right folder?"
    (folder / f"{NAME}.index.json").write_text(json.dumps({"weight_map": {"surplus.weight": NAME}}))
    assert (
        refused(folder)
        == f"{folder / NAME}.index.json lists surplus.weight, which its files lack; download the folder again"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": "abc"}, "describes no model that can be built (TypeError"),
        ({"encoder_block_out_channels": None}, "describes no model that can be built (TypeError"),
        ({"act_fn": "nonsense"}, "describes no model that can be built ("),
        (
            {"latent_channels": 10**9},
            "config.json: latent_channels is 1000000000, expected at most 1048576; correct it",
        ),
        ({"num_encoder_blocks": [1, 3, 3, 10**6]}, "config.json: num_encoder_blocks is 1000000, expected at most 1000"),
        ({"num_decoder_blocks": 5}, "describes no model that can be built ("),
    ],
)
def test_configurations_that_no_model_has(folder, changes, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert message in refused(folder)


def test_files_of_no_bytes(folder):
    (folder / NAME).write_bytes(b"")
    assert refused(folder).startswith(f"{folder / NAME} is damaged or incomplete (")
    (folder / "config.json").write_bytes(b"")
    assert refused(folder).startswith(f"{folder / 'config.json'} is not valid JSON (")
