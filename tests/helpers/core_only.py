"""Run as a process in which only the packages of a plain `pip install hybrid_tokenizer` can be imported: core_only.py CODE.

The core is pyproject's `dependencies` and what those need in turn. Modules of every other installed package are hidden.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "hybrid-tokenizer"
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needs_of(package, extra):
    """What a package requires, of this one by pyproject.toml, of others by their metadata."""
    if canonicalize_name(package) == PROJECT:
        return METADATA["optional-dependencies"][extra] if extra else METADATA["dependencies"]
    try:
        return requires(package) or []
    except PackageNotFoundError:
        return []


def closure(requirements):
    """Names of the packages that pip installs for these requirements, as far as they are installed here."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        for extra in one.extras or {""}:
            key = (canonicalize_name(one.name), extra)
            if key in found or (one.marker and not one.marker.evaluate({"extra": ""})):
                continue
            found.add(key)
            for needed in map(Requirement, needs_of(one.name, extra)):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    needed.marker = None
                    waiting.append(needed)
    return {name for name, _ in found}


class Hiding:
    """A finder that does not see some top-level modules."""

    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)


def main():
    core = closure(METADATA["dependencies"]) | {PROJECT}
    # a module that several packages share stays visible if one of them is in the core
    hidden = {
        module
        for module, packages in packages_distributions().items()
        if not {canonicalize_name(package) for package in packages} & core
    }
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
    for module in [name for name in sys.modules if name.partition(".")[0] in hidden]:
        del sys.modules[module]
    code, sys.argv = sys.argv[1], sys.argv[1:]
    exec(compile(code, "<core>", "exec"), {"__name__": "__main__", "hidden": hidden})


if __name__ == "__main__":
    main()
