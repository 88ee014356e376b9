"""The wheel holds everything that the commands read."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers.commands import ROOT, environment

SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content, away from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in ("hybrid_tokenizer", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(folder / "dist" / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def files_under(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip


def test_every_file_of_the_package_and_every_configuration_is_inside(installed):
    inside = files_under(installed / "hybrid_tokenizer")
    configs = {f"configs/{name}" for name in files_under(ROOT / "configs")}
    assert inside >= files_under(ROOT / "hybrid_tokenizer") | configs | {"py.typed"}


def test_the_metadata_has_licence_readme_authors_and_the_command(installed):
    (folder,) = installed.glob("*.dist-info")
    metadata = (folder / "METADATA").read_text()
    for line in ("License-Expression: MIT", "Author: The hybrid_tokenizer authors", "Description-Content-Type: text/markdown"):  # fmt: skip
        assert line in metadata.splitlines()
    assert "hybrid-tokenizer = hybrid_tokenizer.commands.cli:main" in (folder / "entry_points.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"), [(["list"], "tiny"), (["study", "study=figures", "--help"], "  guides=")]
)
def test_commands_run_outside_the_checkout(installed, tmp_path, arguments, said):
    command = [sys.executable, "-m", "hybrid_tokenizer.commands.cli", *arguments]
    paths = environment() | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=paths, capture_output=True, text=True, check=True)
    assert said in done.stdout
    code = "from hybrid_tokenizer.commands import config; print(config.CONFIG_DIR)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=paths, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(installed / "hybrid_tokenizer/configs")
