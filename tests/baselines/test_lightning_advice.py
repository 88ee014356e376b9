"""What the module of `load_baseline` says to do with a file that holds objects beside tensors."""

import textwrap

import pytest
import torch
from safetensors.torch import load_file

from hybrid_tokenizer.baselines import loading
from hybrid_tokenizer.checkpoints.files import read_foreign
from hybrid_tokenizer.errors import HybridTokenizerError


class ModelCheckpoint:
    """Stands for Lightning's."""


def test_the_tensors_of_such_a_file_are_written_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": [ModelCheckpoint()]}, "last.ckpt")
    with pytest.raises(HybridTokenizerError, match="ModelCheckpoint"):
        read_foreign(tmp_path / "last.ckpt")
    lines = [line for line in loading.__doc__.splitlines() if line.startswith("    ")]
    exec(textwrap.dedent("\n".join(lines)), {"ModelCheckpoint": ModelCheckpoint})
    assert "ModelCheckpoint" in capsys.readouterr().out
    assert torch.equal(load_file("last.safetensors")["a"], torch.ones(2))
