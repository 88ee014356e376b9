"""Count the rooms (top-level entries of the package) and the imports between them.

python tools/count_imports.py [CHECKOUT]
"""

import argparse
import sys
from pathlib import Path

import grimp

PACKAGE = "hybrid_tokenizer"
ROOT = Path(__file__).resolve().parents[1]


def room_of(module: str) -> str:
    """The top-level entry that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def count(checkout: Path) -> tuple[int, int, int]:
    """Rooms, pairs of rooms of which one imports from the other, and module imports that cross a border."""
    sys.path.insert(0, str(checkout))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    crossing = [
        (room_of(module), room_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if room_of(module) != room_of(imported)
    ]
    return len({room_of(module) for module in graph.modules}), len(set(crossing)), len(crossing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", default=ROOT, help="a checkout of this project (this one)")
    rooms, pairs, imports = count(parser.parse_args().checkout)
    print(f"{rooms} rooms, {pairs} arrows between them, {imports} module imports across rooms")


if __name__ == "__main__":
    main()
