"""The console command: its table, its help, and paths without an option's name."""

import runpy
import subprocess
import sys

import pytest
from helpers.commands import ROOT, environment

from hybrid_tokenizer.commands import cli
from hybrid_tokenizer.commands.cli import COMMANDS, with_paths

HEAVY = ("torch", "diffusers", "transformers")


def in_a_fresh_process(*arguments):
    """Standard output of `hybrid-tokenizer ARGUMENTS`, and which of `HEAVY` it imported."""
    code = (
        "import sys\nfrom hybrid_tokenizer.commands.cli import main\n"
        f"sys.argv = {['hybrid-tokenizer', *arguments]!r}\n"
        f"try:\n    main()\nexcept SystemExit as leaving:\n    assert not leaving.code\nfinally:\n    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.strip().splitlines()[-1]


def message_of(monkeypatch, *arguments):
    """What the console command leaves with."""
    monkeypatch.setattr(sys, "argv", ["hybrid-tokenizer", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code


def test_help_lists_every_command_and_imports_no_model_library():
    text, imported = in_a_fresh_process("--help")
    assert imported == "[]"
    for name, command in COMMANDS.items():
        assert any(line.split()[:1] == [name] and command.purpose in line for line in text.splitlines())


def test_an_unknown_command_is_told_the_nearest(monkeypatch):
    assert message_of(monkeypatch, "reconstrukt") == (
        "error: no command 'reconstrukt'; did you mean hybrid-tokenizer reconstruct?"
    )
    assert message_of(monkeypatch, "zzz") == "error: no command 'zzz'; see hybrid-tokenizer --help"


def test_a_path_alone_is_the_commands_input():
    arguments = ["cat.png", "output_dir=out", "-m"]
    assert with_paths(COMMANDS["reconstruct"], arguments) == ["input=cat.png", "output_dir=out", "-m"]
    assert with_paths(COMMANDS["eval"], arguments) == arguments


@pytest.mark.parametrize("name", ["train-guide", "train-semantic", "pretrain-diffusion", "train-lm"])
def test_a_training_command_runs_as_a_module(name, monkeypatch, capsys):
    """As `accelerate launch -m` starts it."""
    path = ROOT / "hybrid_tokenizer" / "commands" / f"{COMMANDS[name].module}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    # not run_module: it would leave behind bytecode that only works under the type checks of the tests
    runpy.run_path(str(path), run_name="__main__")
    assert COMMANDS[name].purpose.lower() in capsys.readouterr().out.lower()
