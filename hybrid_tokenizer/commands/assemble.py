"""Put the folders of the three branches together as one tokenizer."""

import argparse
from pathlib import Path
from typing import Any

from hybrid_tokenizer.errors import HybridTokenizerError, printable


def read_options(path: Path) -> dict[str, Any]:
    """Decode options from a JSON file: the options themselves, or what a decode sweep recommends (`eval_decode.json`)."""
    from hybrid_tokenizer.checkpoints.files import read_json

    values = read_json(path)  # a sweep's report holds large numbers, such as bytes of memory, that no configuration has
    return values.get("recommended", values) if isinstance(values, dict) else values


def run(options: argparse.Namespace) -> None:
    """Read, check and write. Imports are here so that `--help` needs no model library."""
    folders = {part: getattr(options, part).expanduser() for part in ("guide", "semantic", "diffusion")}
    for part, folder in folders.items():
        if not folder.is_dir():
            raise HybridTokenizerError(f"--{part} {printable(folder)} is not a folder; give the {part} branch's own folder, such as final/ of its training")  # fmt: skip
    output = options.output.expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise HybridTokenizerError(f"--output {printable(output)} exists and is not empty; give a new or empty folder")
    import dataclasses

    from hybrid_tokenizer.diffusion import DecodeOptions
    from hybrid_tokenizer.hybrid import HybridTokenizer

    chosen = None
    if options.decode_options is not None:
        path = options.decode_options.expanduser()
        chosen = DecodeOptions.from_dict(read_options(path), printable(path))
    tokenizer = HybridTokenizer.from_pretrained(options.name, **folders)
    if chosen is not None:
        tokenizer.diffusion.config = dataclasses.replace(tokenizer.diffusion.config, decode_defaults=chosen)
    tokenizer.save_pretrained(output)
    print(f"{tokenizer.name}: written to {output}")
    print(f"next: hybrid-tokenizer eval model_name={output} output_dir=outputs/{options.name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: hybrid-tokenizer assemble --guide runs/guide/final --semantic runs/semantic/final "
        "--diffusion runs/unet/final --output my_tokenizer --name mine",
    )
    parser.add_argument("--guide", type=Path, required=True, metavar="FOLDER", help="a trained guide tokenizer")
    parser.add_argument("--semantic", type=Path, required=True, metavar="FOLDER", help="a trained or converted semantic tokenizer")  # fmt: skip
    parser.add_argument("--diffusion", type=Path, required=True, metavar="FOLDER", help="a trained diffusion decoder, or a Stable Diffusion folder")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where to write; new or empty")
    parser.add_argument("--name", required=True, help="the tokenizer's name, which token files record")
    parser.add_argument("--decode-options", type=Path, metavar="FILE", help="JSON of default decode options, such as eval_decode.json of `study=decode_sweep`; without it, the decoder's own")  # fmt: skip
    options = parser.parse_args()
    try:
        run(options)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
