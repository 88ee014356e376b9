"""Put a trained language model into the package as an embedded preset (fp16, at most 40 MB) and keep the run's curve."""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from pack_preset import PRESETS, keep_curve

from hybrid_tokenizer.checkpoints.files import give_umask_mode
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.model import load_language_model
from hybrid_tokenizer.language.vocabulary import save_vocabulary

MOST_BYTES = 40 * 10**6


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="output_dir of train-lm, whose final/ is packed")
    parser.add_argument("--name", default="tiny_lm", help="name of the preset (%(default)s)")
    parser.add_argument("--presets", type=Path, default=PRESETS, help="folder of the presets (the package's)")
    parser.add_argument("--results", type=Path, required=True, help="folder for the curve and the facts, one JSON")
    parser.add_argument("--data", type=Path, help="folder of the token shards; written as $DATA in the results")
    parser.add_argument("--runs", type=Path, help="folder of the runs; written as $RUNS in the results")
    return parser.parse_args()


def pack(run: Path, folder: Path) -> int:
    """Weights, tokenizer and vocabulary of `run` in `folder`; the card that is there stays. Returns the bytes."""
    model, tokenizer, vocabulary = load_language_model(str(run / "final"))
    card = folder / "README.md"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        model.to(torch.float16).save_pretrained(whole)
        save_vocabulary(whole, tokenizer, vocabulary)
        if card.is_file():  # written by hand
            shutil.copy(card, whole)
        files = [path for path in whole.rglob("*") if path.is_file()]
        give_umask_mode(*files)
        size = sum(path.stat().st_size for path in files)
        if size > MOST_BYTES:
            raise HybridTokenizerError(
                f"the preset has {size} bytes, over the limit of {MOST_BYTES}; train a smaller model"
            )
        if folder.exists():
            shutil.rmtree(folder)
        whole.rename(folder)
    return size


def main() -> None:
    arguments = read_arguments()
    size = pack(arguments.run, arguments.presets / arguments.name)
    keep_curve(arguments.run, arguments.results, {"$DATA": arguments.data, "$RUNS": arguments.runs})
    print(f"{arguments.presets / arguments.name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        main()
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
