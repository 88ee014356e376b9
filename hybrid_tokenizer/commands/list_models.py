"""List the tokenizers whose weights are in the package, and the baselines with their licences."""

import argparse
import re

from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.presets import PRESETS, list_presets

LICENCE = re.compile(r"Licence: (.+?)\.(?:\*\*|\s)")


def preset_licence(name: str) -> str:
    """The licence that a preset's card states."""
    card = PRESETS / name / "README.md"
    found = LICENCE.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else "see its card"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    width = max(map(len, [*BASELINES, *list_presets()]))
    print("presets (weights in the package):")
    for name in list_presets():
        print(f"  {name:{width}}  {preset_licence(name)}")
    print("\nbaselines (you bring the weights: +baselines.NAME=FILE in eval):")
    print(f"  {'name':{width}}  {'codes':>7}  {'pixels per token':>16}  licence")
    for name, one in BASELINES.items():
        print(f"  {name:{width}}  {one.codebook_size:7}  {f'{one.factor} x {one.factor}':>16}  {one.family.licence}")
