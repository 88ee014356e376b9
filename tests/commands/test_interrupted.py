"""Ctrl-C in a command: one line on what is kept, and status 130."""

import pytest
from helpers.bad_images import write_bad_folder
from helpers.commands import run_command
from helpers.small_models import small_hybrid

from hybrid_tokenizer.commands import cli
from hybrid_tokenizer.evaluation import loop


def test_an_evaluation_keeps_its_finished_rows(tmp_path, capfd, monkeypatch):
    small_hybrid().save_pretrained(tmp_path / "small")
    reconstruct, seen = loop.reconstruct, []

    def pressing(tokenizer, *arguments):
        seen.append(tokenizer.name)
        if tokenizer.name == "unrelated" and seen.count("unrelated") == 1:
            raise KeyboardInterrupt
        return reconstruct(tokenizer, *arguments)

    monkeypatch.setattr(loop, "reconstruct", pressing)
    arguments = (
        "eval_recon", f"model_name={tmp_path / 'small'}", f"data.root={write_bad_folder(tmp_path / 'bad')}",
        "data.image_size=32", f"output_dir={tmp_path / 'out'}", "tokenizers=[identity,unrelated]",
    )  # fmt: skip
    assert run_command(*arguments) == 130
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == "interrupted: 1 of 2 rows are finished; they are kept, and the same command goes on from there"
    assert run_command(*arguments) is None
    assert seen == ["identity", "unrelated", "unrelated"]


def test_any_other_command_says_that_it_was_interrupted(capsys, monkeypatch):
    def pressed(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", pressed)
    with pytest.raises(SystemExit) as leaving:
        cli.run("list", [])
    assert leaving.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"
