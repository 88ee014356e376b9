"""Puts `configs/` into the package when it is built; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """An installed package reads its own copy. A checkout, also an editable one, reads `configs/` itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib) / "hybrid_tokenizer/configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
