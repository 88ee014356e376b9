"""scripts/ holds thin doors: each enters the command of the same name and nothing else."""

import runpy
from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.py"))
OTHER_NAMES = {"convert_checkpoint": "convert"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_only_enters_its_command(script):
    module = import_module(f"hybrid_tokenizer.commands.{OTHER_NAMES.get(script.stem, script.stem)}")
    names = runpy.run_path(str(script), run_name="not_main")
    assert names["main"] is module.main
    assert len(script.read_text().splitlines()) <= 6
