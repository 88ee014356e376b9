"""Convert a published checkpoint to a component folder (config.json and safetensors). Pickles are read as tensors only."""

import argparse
from pathlib import Path

from hybrid_tokenizer.commands.convert import KINDS, convert
from hybrid_tokenizer.errors import HybridTokenizerError


def main() -> None:
    kinds = "\n".join(f"  {name:20} {kind.files}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"kinds and their files:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help="one of those below")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="the checkpoint's files, in any order")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the component folder to write")
    options = parser.parse_args()
    try:
        lines = convert(options.kind, options.files, options.output)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(lines))


if __name__ == "__main__":
    main()
