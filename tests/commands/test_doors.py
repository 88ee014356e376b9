"""scripts/ holds thin doors: each enters its command, and they together with the table name every command."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from hybrid_tokenizer.commands import cli
from hybrid_tokenizer.commands.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
OTHER_NAMES = {"convert_checkpoint": "convert"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_only_enters_its_command(script, monkeypatch):
    entered = []
    monkeypatch.setattr(cli, "run", entered.append)
    exec(compile(script.read_text(), script, "exec"), {"__name__": "__main__"})
    (name,) = entered
    assert COMMANDS[name].module == OTHER_NAMES.get(script.stem, script.stem)
    assert len(script.read_text().splitlines()) <= 6


def test_the_table_names_every_command():
    modules = {command.module for command in COMMANDS.values()}
    assert all(find_spec(f"hybrid_tokenizer.commands.{module}") for module in modules)
    mains = {
        path.stem for path in (ROOT / "hybrid_tokenizer/commands").glob("*.py") if "\ndef main(" in path.read_text()
    }
    assert mains - {"cli"} == modules


def test_every_configuration_of_the_table_exists():
    assert all((ROOT / f"configs/{one.config}.yaml").is_file() for one in COMMANDS.values() if one.config)
