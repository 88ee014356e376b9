"""README's lines of code run; the floors of the house hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

from hybrid_tokenizer.data import sample_photographs

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_lines_of_code_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample_photographs()["cat"].save("cat.jpg")
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    names: dict = {}
    exec(snippet, names)
    assert names["tokens"].semantic_indices.shape == (1, 32)
    assert names["ids"].shape == (1, 2 + 32 + 340)
    assert (tmp_path / "cat_restored.png").stat().st_size > 10_000


def test_the_page_stays_short():
    assert len(README.encode()) < 9 * 1024


def test_floors_hold():
    command = [Path(sys.executable).with_name("lint-imports")]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stdout


def test_importing_the_package_stays_light():
    code = (
        "import sys, hybrid_tokenizer; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
