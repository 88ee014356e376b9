"""A trained model becomes a preset of the package, and the commands use it without a network."""

import json

import pytest
from helpers.commands import ROOT, run_command, run_tool
from safetensors.torch import load_file

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.language import model as models


@pytest.fixture
def presets(run, tmp_path, monkeypatch):
    """A folder of presets with the small run as `tiny_lm`, packed twice: the card that was written by hand stays."""
    folder = tmp_path / "presets"
    monkeypatch.syspath_prepend(ROOT / "tools")
    options = ("--run", run, "--presets", folder, "--results", tmp_path / "results", "--runs", run.parent)
    assert run_tool("pack_lm.py", *options) is None
    (folder / "tiny_lm" / "README.md").write_text("# by hand")
    assert run_tool("pack_lm.py", *options) is None
    monkeypatch.setattr(models, "PRESETS", folder)
    return folder


def test_the_preset_is_the_default_and_needs_no_network(presets, run, corpus, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("nothing is downloaded for a preset")

    assert (presets / "tiny_lm" / "README.md").read_text() == "# by hand"
    assert models.language_model_names() == ["tiny_lm"]
    monkeypatch.setattr(hub, "snapshot", refuse)
    lm = models.load_language_model("tiny_lm", HybridTokenizer.from_pretrained(corpus.tokenizer).source)
    packed = load_file(presets / "tiny_lm" / "model.safetensors")
    for name, weight in load_file(run / "final" / "model.safetensors").items():
        assert packed[name].equal(weight.half()) and lm.model.state_dict()[name].equal(packed[name].float())

    outputs = f"output_dir={tmp_path / 'out'}"
    options = (f"model_name={corpus.tokenizer}", 'prompt="picture 7"', "samples=1", "budget=33", outputs)
    assert run_command("generate", *options) is None
    assert "1 pictures of 33 tokens" in capsys.readouterr().out
    kept = json.loads((tmp_path / "results" / "run.json").read_text())
    assert kept["training"]["images_seen"] == 24 and str(run.parent) not in json.dumps(kept)


def test_too_large_a_model_leaves_the_preset_as_it_is(presets, run, tmp_path, monkeypatch):
    import pack_lm

    before = {path.name: path.read_bytes() for path in (presets / "tiny_lm").iterdir()}
    monkeypatch.setattr(pack_lm, "MOST_BYTES", 10_000)
    with pytest.raises(HybridTokenizerError, match=r"over the limit of 10000; train a smaller model"):
        pack_lm.pack(run, presets / "tiny_lm")
    assert {path.name: path.read_bytes() for path in (presets / "tiny_lm").iterdir()} == before
    assert [path.name for path in presets.iterdir()] == ["tiny_lm"]


def test_a_preset_that_is_not_there_is_one_line(corpus):
    options = (f"model_name={corpus.tokenizer}", "prompt=a", "language_model=huge_lm")
    message = run_command("generate", *options)
    assert "huge_lm is no language model of this package" in message and "give a folder that train-lm wrote" in message
