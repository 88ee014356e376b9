"""Weights files and JSON that are cut off, altered or of another kind: each is one line, with its remedy."""

import json
import os
import pickle
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybrid_tokenizer.checkpoints.files import (
    check_finite,
    fill,
    load_strict,
    load_tensors,
    read_config,
    read_foreign,
    read_json,
    read_pickle,
)
from hybrid_tokenizer.checkpoints.rename import count_layers
from hybrid_tokenizer.errors import HybridTokenizerError

AGAIN = "download it again, or convert it to safetensors where you trust it"
NOT_SAFE = "it is incomplete or holds more than tensors: " + AGAIN
RAN = []


class Runs:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return RAN.append, (1,)


def refused(function, *arguments):
    with pytest.raises(HybridTokenizerError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PICKLES = {
    "integer key": (
        {1: torch.ones(1)},
        "{path} is not a state dict of tensors; expected names mapped to dense tensors",
    ),
    "list": ([torch.ones(1)], "{path} is not a state dict of tensors; expected names mapped to dense tensors"),
    "sparse": (
        {"a": torch.ones(2).to_sparse()},
        "{path} is not a state dict of tensors; expected names mapped to dense tensors",
    ),
    "complex": (
        {"a": torch.ones(2, dtype=torch.complex64)},
        "{path} is not a state dict of tensors; expected names mapped to dense tensors",
    ),
    "number": (
        {"a": torch.ones(1), "epoch": 3},
        "{path} is not a state dict of tensors; expected names mapped to dense tensors",
    ),
    "code": (
        {"a": torch.ones(1), "b": Runs()},
        "{path} cannot be read safely (it names getattr); " + NOT_SAFE,
    ),
    "class": ({"a": torch.ones(1), "b": Runs}, "{path} cannot be read safely (it names test_files.Runs); " + NOT_SAFE),
    "nan": (
        {"model": {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)}},
        "{path} has values that are not finite in a; it is damaged, or its training diverged: download it again, or take an "
        "earlier checkpoint",
    ),
    "infinity": (
        {"a": torch.tensor(float("-inf"), dtype=torch.float16)},
        "{path} has values that are not finite in a; it is damaged, or its training diverged: download it again, or take an "
        "earlier checkpoint",
    ),
}


@pytest.mark.parametrize(("value", "message"), PICKLES.values(), ids=PICKLES)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_pickle_of_something_else(value, message, tmp_path):
    torch.save(value, tmp_path / "a.pth")
    assert refused(read_foreign, tmp_path / "a.pth") == "checkpoint " + message.format(path=tmp_path / "a.pth")
    assert RAN == []


BYTES = {
    "empty": (b"", "EOFError"),
    "text": (b"hello world", "KeyError: 101"),
    "empty stack": (b"\x80\x02.", "IndexError: pop from empty list"),
    "half a zip": (
        b"PK\x03\x04" + b"0" * 100,
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding",
    ),
    "protocol 4": (pickle.dumps({"b": Runs()}, protocol=4), "it "),
}


@pytest.mark.parametrize(("data", "reason"), BYTES.values(), ids=BYTES)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bytes_that_are_no_pickle_of_tensors(data, reason, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(data)
    line = refused(read_foreign, tmp_path / "a.ckpt")
    assert line.startswith(f"checkpoint {tmp_path / 'a.ckpt'} cannot be read safely ({reason}") and line.endswith(
        NOT_SAFE
    )
    assert "weights_only" not in line and RAN == []


def test_every_cut_of_a_pickle_is_one_line(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(4), "b": torch.zeros(2, 2)}}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        assert "cannot be read safely" in refused(read_foreign, tmp_path / "cut.pt")


SAFETENSORS = {
    "empty": b"",
    "short": b"\x10\0\0\0\0\0\0\0{}",
    "huge header": b"\xff" * 7 + b"\x7f" + b"{}",
    "no JSON": (8).to_bytes(8, "little") + b"xxxxxxxx",
}


@pytest.mark.parametrize("data", SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors_that_are_damaged(data, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(data)
    line = refused(load_tensors, tmp_path / "a.safetensors")
    assert line.startswith(f"{tmp_path / 'a.safetensors'} is damaged or incomplete (")
    assert line.endswith("); write or download it again")


def test_a_file_cannot_make_the_line_long(tmp_path):
    header = json.dumps({"a": {"dtype": "x" * 5000, "shape": [], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert len(refused(load_tensors, tmp_path / "a.safetensors")) < 600
    line = refused(load_strict, nn.Linear(1, 1), {"x" * 5000: torch.ones(1)}, "file")
    assert line.startswith("file does not fit this Linear: 2 missing: bias, weight; 1 unexpected: xxx")
    assert len(line) < 400
    assert "1 unexpected: a\\nb; check" in refused(load_strict, nn.Linear(1, 1), {"a\nb": torch.ones(1)}, "file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
def test_every_floating_kind_is_checked_in_full(dtype, tmp_path):
    whole = {"a": torch.full((3, 5), 1.5).to(dtype), "index": torch.tensor([2**40]), "none": torch.ones(0)}
    save_file(whole, tmp_path / "a.safetensors")
    assert set(load_tensors(tmp_path / "a.safetensors")) == set(whole)
    for place, value in ((0, "nan"), (14, "inf"), (7, "-inf")):
        values = torch.full((15,), 1.5)
        values[place] = float(value)
        save_file({**whole, "a": values.view(3, 5).to(dtype)}, tmp_path / "a.safetensors")
        assert "has values that are not finite in a;" in refused(load_tensors, tmp_path / "a.safetensors")


def test_the_largest_finite_numbers_are_finite():
    for dtype in (torch.float16, torch.float32, torch.float64):
        limit = torch.finfo(dtype)
        check_finite({"a": torch.tensor([limit.max, limit.max, limit.min], dtype=dtype)}, "x")


def test_prefixes_of_parallel_and_compiled_training_are_stripped_and_said(tmp_path):
    weights = {"encoder.weight": torch.ones(2, 2), "module.bias": torch.zeros(2)}
    for name, keys in {
        "parallel": {f"module.{key}": key for key in weights},
        "both": {f"module._orig_mod.{key}": key for key in weights},
        "inside": {key.replace("encoder.", "encoder._orig_mod."): key for key in weights},
    }.items():
        save_file({stored: weights[key] for stored, key in keys.items()}, tmp_path / "a.safetensors")
        torch.save({"model": {stored: weights[key] for stored, key in keys.items()}}, tmp_path / "a.pt")
        for file in ("a.safetensors", "a.pt"):
            with pytest.warns(UserWarning, match=r"stripped module\. and _orig_mod\. from the names of \d weights"):
                assert set(read_foreign(tmp_path / file)) == set(weights), name
    torch.save(weights, tmp_path / "a.pt")
    assert set(read_foreign(tmp_path / "a.pt")) == set(weights)  # `module.` that is not before every name stays
    torch.save({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, tmp_path / "a.pt")
    assert refused(read_foreign, tmp_path / "a.pt") == (
        f"{tmp_path / 'a.pt'} holds weights twice, with and without _orig_mod.; save the model's own state_dict"
    )


def test_a_pickle_of_one_tensor(tmp_path):
    torch.save(torch.ones(1, 2, 3), tmp_path / "a.bin")
    assert read_pickle(tmp_path / "a.bin").shape == (1, 2, 3)


def test_integers_where_floats_belong_are_refused():
    layer = nn.Linear(2, 2)
    state = {"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}
    assert "1 not floating: weight torch.int8; check that the weights" in refused(load_strict, layer, state, "x")
    assert "1 not floating: weight torch.int8; check that the weights" in refused(
        fill, lambda: nn.Linear(2, 2), state, "x"
    )


def test_a_model_is_filled_without_random_values_and_refused_without_memory():
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3), "1.running_mean": torch.ones(3)}
    state |= {"1.weight": torch.ones(3), "1.bias": torch.ones(3), "1.running_var": torch.ones(3)}
    state |= {"1.num_batches_tracked": torch.tensor(5)}
    before = torch.get_rng_state()
    module = fill(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), state, "x")
    assert torch.equal(torch.get_rng_state(), before)
    assert not module.training and all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(module(torch.ones(1, 2)), module(torch.ones(1, 2))) and module[1].num_batches_tracked == 5
    start = time.perf_counter()
    line = refused(
        fill, lambda: nn.Sequential(*(nn.Linear(2**14, 2**14) for _ in range(50))), {"a": torch.ones(1)}, "x"
    )
    assert line.startswith("x does not fit this Sequential: 100 missing: 0.bias, ") and time.perf_counter() - start < 5


def test_what_a_library_raises_while_it_builds_is_one_line():
    line = refused(fill, lambda: nn.GroupNorm(3, 4), {}, "some/config.json")
    assert line.startswith("some/config.json describes no model that can be built (ValueError: num_channels")
    assert refused(fill, lambda: nn.Conv2d(1, 1, 3, groups=0), {}, "x").startswith("x describes no model")


JSON = {
    "empty": (b"", "is not valid JSON (Expecting value"),
    "cut off": (b'{"a": ', "is not valid JSON (Expecting value"),
    "not UTF-8": (b'{"a": "\xff"}', "is not valid JSON ("),
    "digits": (b"1" * 5000, "is not valid JSON (Exceeds the limit"),
    "nesting": (b"[" * 200_000, "is not valid JSON ("),
}


@pytest.mark.parametrize(("data", "message"), JSON.values(), ids=JSON)
def test_json_that_cannot_be_read(data, message, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    assert refused(read_json, tmp_path / "a.json").startswith(f"{tmp_path / 'a.json'} {message}")


def test_json_that_is_not_there_or_too_large(tmp_path):
    assert (
        refused(read_json, tmp_path / "a.json")
        == f"{tmp_path / 'a.json'} does not exist; is {tmp_path} the right folder?"
    )
    assert refused(read_json, tmp_path).startswith(f"{tmp_path} cannot be read (Is a directory); give a file")
    (tmp_path / "a.json").write_text("[" + "1," * 100 + "1]")
    assert refused(read_json, tmp_path / "a.json", 100) == (
        f"{tmp_path / 'a.json'} has 203 bytes, expected at most 100; give the right file"
    )
    with open(tmp_path / "large.json", "wb") as file:
        os.truncate(file.fileno(), 2**20 + 1)
    assert "has 1048577 bytes, expected at most 1048576" in refused(read_config, tmp_path / "large.json")


CONFIGS = {
    "list": ([1], "holds [1], expected an object; write or download it again"),
    "null": (None, "holds None, expected an object; write or download it again"),
    "layers": ({"a": {"num_layers": 10**9}}, ": num_layers is 1000000000, expected at most 1000; correct it"),
    "blocks": ({"num_encoder_blocks": [1, 5000]}, ": num_encoder_blocks is 5000, expected at most 1000; correct it"),
    "width": ({"width": -(2**21)}, ": width is -2097152, expected at most 1048576; correct it"),
    "huge": ({"width": 10**100}, ": width is 1" + "0" * 56 + "..., expected at most 1048576; correct it"),
    "nan": ({"scale": float("nan")}, ": scale is nan, expected at most 1048576; correct it"),
    "entries": ({"channels": [8] * 1001}, ": channels has 1001 entries, expected at most 1000"),
    "depth": ({"a": json.loads("[" * 20 + "]" * 20)}, " is nested deeper than 16; write or download it again"),
}


@pytest.mark.parametrize(("value", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_no_model_has(value, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(value))
    line = refused(read_config, tmp_path / "config.json")
    assert line == f"{tmp_path / 'config.json'}{'' if message[0] in ': ' else ' '}{message}"


def test_a_configuration_of_a_published_size_is_read(tmp_path):
    values = {"codebook_size": 262144, "layers": 40, "attention": [True, False], "rate": 1e-5, "text": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path / "config.json") == values


def test_a_layer_number_out_of_reach_is_refused_at_once():
    assert count_layers({"l.3.w": torch.ones(1)}, "l.") == 4
    line = refused(count_layers, {"l.999999999.w": torch.ones(1)}, "l.")
    assert line == "the checkpoint has a weight of l.999999999, expected at most 1000 layers; download it again"
