"""Write small files in the published layouts and twelve pictures with captions, to walk docs/reproduce.md without downloads."""

import argparse
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.verification.layouts.standins import make_standins, read_layout

SEED_KEYS = Path(__file__).resolve().parents[1] / "tests" / "semantic" / "keys" / "seed1.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    options = parser.parse_args()
    if options.folder.exists():
        raise SystemExit(f"error: {options.folder} exists and is not written over; give a new folder")
    try:
        make_standins(options.folder, read_layout(SEED_KEYS))
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    print(
        f"written to {options.folder}; set WEIGHTS={options.folder}/weights, IMAGENET={options.folder}/imagenet, COCO={options.folder}/coco"
    )


if __name__ == "__main__":
    main()
