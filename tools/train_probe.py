"""Train the offline text-image score `probe_score` on photographs and captions.

Each folder has a captions.jsonl. The features of the frozen networks are computed once and kept in --cache-dir.
"""

import argparse
from dataclasses import MISSING, fields

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.training.probe import TrainProbeConfig, train_probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", metavar="FOLDER", help="photographs and captions to train on")
    parser.add_argument("--val-root", required=True, metavar="FOLDER", help="photographs and captions to validate on")
    for option in fields(TrainProbeConfig):
        if option.default is not MISSING:
            name = f"--{option.name.replace('_', '-')}"
            parser.add_argument(name, type=option.type, default=option.default, help="(%(default)s)")
    try:
        config = TrainProbeConfig(**vars(parser.parse_args()))
        facts = train_probe(config)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    for name, value in facts["validation"].items():
        print(f"{name} {value:.4g}")
    print(f"written to {config.output_dir}")


if __name__ == "__main__":
    main()
