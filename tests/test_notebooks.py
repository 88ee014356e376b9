"""The notebooks run from top to bottom on one photograph, and the committed ones hold what they drew."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPT = [sys.executable, str(ROOT / "tools" / "run_notebooks.py")]


def pictures(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_were_run_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert pictures(notebook) >= 4
    assert str(ROOT) not in path.read_text()


def test_notebooks_run_on_one_photograph(tmp_path):
    before = sorted((ROOT / "notebooks").iterdir())
    subprocess.run(
        [*SCRIPT, *map(str, NOTEBOOKS), "--output", str(tmp_path)],
        env=os.environ | {"PHOTOGRAPHS": "1"}, check=True, capture_output=True, timeout=400,
    )  # fmt: skip
    assert {path.stem for path in NOTEBOOKS} == {"figures", "reconstruction"}
    for path in NOTEBOOKS:
        assert pictures(nbformat.read(tmp_path / path.name, as_version=4)) == pictures(
            nbformat.read(path, as_version=4)
        )
    assert sorted((ROOT / "notebooks").iterdir()) == before


def test_a_failing_cell_or_a_missing_notebook_is_one_line(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('no such thing')")])
    nbformat.write(broken, tmp_path / "broken.ipynb")
    for name, message in (("broken", "ValueError: no such thing"), ("absent", "does not exist")):
        done = subprocess.run([*SCRIPT, str(tmp_path / f"{name}.ipynb")], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("error: ") and message in done.stderr
    assert nbformat.read(tmp_path / "broken.ipynb", as_version=4) == broken  # not half run
