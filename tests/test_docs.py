"""The pages say what is true: generated parts are current, links lead somewhere, named functions exist."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_generated_parts_are_up_to_date():
    command = [sys.executable, "tools/update_docs.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", re.findall(r"^\| .* \| `(hybrid_tokenizer[\w.]+)` \|$", ARCHITECTURE, flags=re.M))
def test_functions_of_the_equations_exist(name):
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:depth]))
        except ModuleNotFoundError:
            continue
        for part in parts[depth:]:
            found = getattr(found, part)
        return
    pytest.fail(f"{name} does not exist")


def test_the_table_of_equations_names_each_of_the_papers_ten():
    table = ARCHITECTURE.split("## From the paper to the code")[1].split("##")[0]
    assert {int(number) for number in re.findall(r"eq\. (\d+)", table)} == set(range(1, 11))
