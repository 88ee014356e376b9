"""assemble, encode, decode and list, on a tokenizer of random weights."""

import json
import sys

import pytest
import torch
from helpers.small_models import small_hybrid
from PIL import Image

from hybrid_tokenizer.commands import cli
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.tokens import HybridTokens


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_hybrid().save_pretrained(folder)
    return folder


def run(monkeypatch, *arguments):
    """The console command in this process. Returns its exit message, None on success."""
    monkeypatch.setattr(sys, "argv", ["hybrid-tokenizer", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as leaving:
        return leaving.code
    return None


def parts_of(folder):
    return [text for part in ("guide", "semantic", "diffusion") for text in (f"--{part}", folder / part)]


def test_three_folders_become_one_tokenizer(saved, tmp_path, monkeypatch, capsys):
    options = {"start": "add_noise", "strength": 0.3, "num_inference_steps": 5}
    (tmp_path / "eval_decode.json").write_text(json.dumps({"recommended": options, "rows": []}))
    output = tmp_path / "mine"
    given = [*parts_of(saved), "--output", output, "--name", "mine", "--decode-options", tmp_path / "eval_decode.json"]
    assert run(monkeypatch, "assemble", *given) is None
    assert f"next: hybrid-tokenizer eval model_name={output}" in capsys.readouterr().out
    made, before = HybridTokenizer.from_pretrained(output), HybridTokenizer.from_pretrained(saved)
    assert made.name == "mine" and made.hash == before.hash
    assert made.diffusion.config.decode_defaults.strength == 0.3 != before.diffusion.config.decode_defaults.strength
    again = run(monkeypatch, "assemble", *given)
    assert again == f"error: --output {output} exists and is not empty; give a new or empty folder"


def test_a_folder_that_is_missing_is_named_by_its_option(saved, tmp_path, monkeypatch):
    given = ["--guide", tmp_path / "no", *parts_of(saved)[2:], "--output", tmp_path / "out", "--name", "mine"]
    assert run(monkeypatch, "assemble", *given) == (
        f"error: --guide {tmp_path / 'no'} is not a folder; give the guide branch's own folder, such as final/ of its training"
    )
    assert not (tmp_path / "out").exists()


def test_images_become_files_of_tokens_and_images_again(saved, tmp_path, monkeypatch, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for shade, name in enumerate(("a.png", "b.png", "b.jpg")):
        Image.new("RGB", (40, 48), (90 * shade, 60, 200)).save(pictures / name)
    given = ["encode", pictures, "--model", saved, "--output", tmp_path / "tokens", "--batch-size", 2]
    assert run(monkeypatch, *given) is None
    files = sorted((tmp_path / "tokens").iterdir())
    assert [file.name for file in files] == ["a.safetensors", "b.jpg.safetensors", "b.png.safetensors"]
    tokens = HybridTokens.load(files[0])
    assert len(tokens) == 1 and tokens.image_size == (32, 32) and tokens.source.name == "small"
    assert run(monkeypatch, *given) == (f"error: {files[0]} exists and is not written over; give another --output")
    assert run(monkeypatch, "decode", files[0], files[1], "--model", saved, "--output", tmp_path / "out") is None
    tokenizer = HybridTokenizer.from_pretrained(saved)
    expected = tokenizer.decode(tokens, generator=torch.Generator().manual_seed(0))
    made = torch.tensor(list(Image.open(tmp_path / "out" / "a.png").tobytes()))
    levels = expected[0].clamp(-1, 1).add(1).mul(127.5).round().permute(1, 2, 0).flatten()
    assert torch.equal(made, levels.long())
    before = (tmp_path / "out" / "a.png").read_bytes()
    message = run(monkeypatch, "decode", files[0], "--model", saved, "--output", tmp_path / "out", "--seed", 5)
    assert message == f"error: {tmp_path / 'out' / 'a.png'} exists and is not written over; give another --output"
    assert (tmp_path / "out" / "a.png").read_bytes() == before


def test_a_path_that_does_not_exist_is_named_as_it_was_given(monkeypatch):
    expected = "error: /nofile.png does not exist; give an image or a folder of images"
    assert run(monkeypatch, "encode", "/nofile.png") == expected
    for given, name in ((["encode", __file__], "cat.safetensors"), (["decode", "cat.safetensors"], "cat.png")):
        remedy = f"is called like a file; give a folder, in which NAME.{name[4:]} is written"
        assert run(monkeypatch, *given, "--output", f"/no/{name}") == f"error: --output /no/{name} {remedy}"
    expected = "error: token file /no.safetensors does not exist; write one with HybridTokens.save"
    assert run(monkeypatch, "decode", "/no.safetensors") == expected


def test_the_list_states_licences(monkeypatch, capsys):
    assert run(monkeypatch, "list") is None
    out = capsys.readouterr().out
    assert any(line.split() == ["tiny", "research", "only"] for line in out.splitlines())
    (row,) = [line for line in out.splitlines() if line.split()[:1] == ["titok_l32"]]
    assert "4096" in row and row.endswith("Apache-2.0")
