"""Draw the training curves that tools/pack_preset.py keeps: a row of panels a stage, one a loss or validation figure."""

import argparse
from pathlib import Path

from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.curves import draw_curves, read_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json", help="one file a stage")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="the picture to write")
    options = parser.parse_args()
    try:
        if options.output.suffix != ".png":
            raise HybridTokenizerError(f"--output={options.output} must end in .png")
        names = [path.stem for path in options.results]
        if len(set(names)) < len(names):
            raise HybridTokenizerError(f"two files have the same name among {', '.join(names)}; rename one")
        picture = draw_curves({name: read_curves(path) for name, path in zip(names, options.results, strict=True)})
        write_atomic(options.output, picture)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    print(options.output)


if __name__ == "__main__":
    main()
