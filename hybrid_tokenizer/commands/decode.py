"""Decode files of tokens to images."""

import argparse
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError


def run(options: argparse.Namespace) -> None:
    """Write OUTPUT/NAME.png per image. Imports are here so that `--help` needs no model library."""
    import torch

    from hybrid_tokenizer.commands.picture_files import check_names_folder, check_new
    from hybrid_tokenizer.data.open import IMAGE_SUFFIXES
    from hybrid_tokenizer.devices import choose_device
    from hybrid_tokenizer.evaluation.pictures import write_png
    from hybrid_tokenizer.hybrid import HybridTokenizer
    from hybrid_tokenizer.images import to_pil
    from hybrid_tokenizer.tokens import HybridTokens

    check_names_folder("--output ", options.output, IMAGE_SUFFIXES, ".png")
    files = [file.expanduser() for file in options.file]
    if len({file.stem for file in files}) < len(files):
        raise HybridTokenizerError(
            "two token files have the same name; decode them one by one, each to its own --output"
        )
    loaded = [HybridTokens.load(file) for file in files]
    targets = [
        [
            options.output.expanduser() / (f"{file.stem}.png" if len(tokens) == 1 else f"{file.stem}_{row}.png")
            for row in range(len(tokens))
        ]
        for file, tokens in zip(files, loaded, strict=True)
    ]
    check_new(target for row in targets for target in row)
    tokenizer = HybridTokenizer.from_pretrained(options.model).to(choose_device(options.device))
    size = None if options.size is None else (options.size, options.size)
    for tokens, names in zip(loaded, targets, strict=True):
        images = tokenizer.decode(tokens, size, torch.Generator().manual_seed(options.seed))
        for image, target in zip(images, names, strict=True):
            write_png(target, to_pil(image))
            print(target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: hybrid-tokenizer decode tokens/cat.safetensors --output decoded"
    )
    parser.add_argument("file", type=Path, nargs="+", metavar="FILE", help="token files, as encode writes them")
    parser.add_argument("--output", type=Path, default=Path("decoded"), metavar="FOLDER", help="where NAME.png go (%(default)s)")  # fmt: skip
    parser.add_argument("--model", default="tiny", help="the preset, folder or hub id that made the tokens (%(default)s)")  # fmt: skip
    parser.add_argument("--size", type=int, help="side of the images in pixels; that of the encoded image")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, where decoding draws any (%(default)s)")
    parser.add_argument("--device", help="cpu or cuda; the GPU if there is one")
    options = parser.parse_args()
    try:
        run(options)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
