"""Encode an image, or each image of a folder, to a file of tokens."""

import argparse
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError

TOKEN_SUFFIX = ".safetensors"


def run(options: argparse.Namespace) -> None:
    """Write OUTPUT/NAME.safetensors per image. Imports are here so that `--help` needs no model library."""
    from hybrid_tokenizer.commands.picture_files import check_exists, check_names_folder, check_new, labels
    from hybrid_tokenizer.devices import choose_device
    from hybrid_tokenizer.evaluation.images import EvalImages
    from hybrid_tokenizer.hybrid import HybridTokenizer, say_token_count

    source = options.image.expanduser()
    check_exists("", source, "an image or a folder of images")
    check_names_folder("--output ", options.output, (TOKEN_SUFFIX,), TOKEN_SUFFIX)
    tokenizer = HybridTokenizer.from_pretrained(options.model).to(choose_device(options.device))
    side = options.image_size or tokenizer.native_size
    tokenizer.check_size(side, side)
    say_token_count("--image-size", side, tokenizer)
    images = EvalImages.open(source, side)
    targets = [options.output.expanduser() / f"{label}{TOKEN_SUFFIX}" for label in labels(images.names)]
    check_new(targets)
    for positions, crops in images.stacks(options.batch_size):
        tokens = tokenizer.encode(crops, search_steps=options.search_steps)
        for row, position in enumerate(positions):
            targets[position].parent.mkdir(parents=True, exist_ok=True)
            tokens[row : row + 1].save(targets[position])
    bits = tokens.bits(tokenizer.semantic.codebook_size, tokenizer.guide.codebook_size)
    print(f"{len(images)} image(s) of {tokens.num_tokens} tokens ({bits:.0f} bits) each, in {options.output}")
    print(f"next: hybrid-tokenizer decode {targets[0]} --model {options.model}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__} The shorter side is resized to the image size, then the centre is cropped.",
        epilog="example: hybrid-tokenizer encode cat.png --output tokens",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="an image or a folder of images")
    parser.add_argument("--output", type=Path, default=Path("tokens"), metavar="FOLDER", help="where NAME.safetensors go (%(default)s)")  # fmt: skip
    parser.add_argument("--model", default="tiny", help="preset, folder or hub id (%(default)s)")
    parser.add_argument("--image-size", type=int, help="side in pixels; the model's own")
    parser.add_argument("--search-steps", type=int, help="gradient steps of the search for closer guide codes; the model's own number")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, help="images at once (%(default)s)")
    parser.add_argument("--device", help="cpu or cuda; the GPU if there is one")
    options = parser.parse_args()
    try:
        run(options)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
