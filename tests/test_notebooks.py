"""The notebooks are for adapting: public names only, nothing defined, run from top to bottom, and committed with what they drew."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path
from pydoc import locate

import nbformat
import pytest
from helpers.commands import run_tool
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
API = (ROOT / "docs" / "api.md").read_text()
DOCUMENTED = [locate(name) for name in re.findall(r"^::: ([\w.]+)$", API, flags=re.M)]
"""The objects and modules of the API reference."""
SMALL = ["--set", "PHOTOGRAPHS = 1", "--set", "SIDE = 64"]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parsed(notebook):
    """The code of all cells, magics and shell lines turned into calls as IPython does."""
    return [ast.parse(TransformerManager().transform_cell(cell.source)) for cell in code_cells(notebook)]


def is_public(module, name):
    """Whether the API reference has it, itself or with its module."""
    found = getattr(import_module(module), name)
    home = sys.modules.get(getattr(found, "__module__", ""))
    return any(one is found or one is home for one in DOCUMENTED) or f"`{module}.{name}`" in API


def pictures(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_were_run_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert pictures(notebook) >= 5
    assert str(ROOT) not in path.read_text() and path.stat().st_size < 1_200_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_public_names_and_define_nothing(path):
    cells = parsed(nbformat.read(path, as_version=4))
    nodes = [node for cell in cells for node in ast.walk(cell)]
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [ast.unparse(node) for node in nodes if isinstance(node, definitions)]
    for node in nodes:
        if isinstance(node, ast.Import):
            assert not [one.name for one in node.names if one.name.startswith("hybrid_tokenizer.")]
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hybrid_tokenizer":
            assert [one.name for one in node.names if not is_public(node.module, one.name)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_where_the_package_is_absent(path):
    (first, *_) = parsed(nbformat.read(path, as_version=4))
    installing = [node for node in ast.walk(first) if isinstance(node, ast.If)]
    assert (
        len(installing) == 1 and "pip" in ast.unparse(installing[0]) and "hybrid_tokenizer[eval]" in ast.unparse(first)
    )


def test_notebooks_run_on_one_photograph(tmp_path):
    before = sorted((ROOT / "notebooks").iterdir())
    assert run_tool("run_notebooks.py", *NOTEBOOKS, "--output", tmp_path, *SMALL) is None
    assert {path.stem for path in NOTEBOOKS} == {"figures", "reconstruction"}
    for path in NOTEBOOKS:
        ran, committed = (nbformat.read(one, as_version=4) for one in (tmp_path / path.name, path))
        assert pictures(ran) == pictures(committed)
        assert [one.execution_count for one in code_cells(ran)] == [
            one.execution_count for one in code_cells(committed)
        ]
    assert sorted((ROOT / "notebooks").iterdir()) == before


def test_a_failing_cell_or_a_missing_notebook_is_one_line(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('no such thing')")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    for arguments, message in (
        (["broken.ipynb"], "ValueError: no such thing"),
        (["absent.ipynb"], "does not exist"),
        (["broken.ipynb", "--set", "X=1"], "give --output"),
    ):
        said = run_tool("run_notebooks.py", tmp_path / arguments[0], *arguments[1:])
        assert said.startswith("error: ") and message in said and "\n" not in said
    assert nbformat.read(tmp_path / "broken.ipynb", as_version=4) == broken  # not half run
