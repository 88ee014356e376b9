"""Prepare a blind ranking of reconstructions, serve it to raters, and turn their votes into the paper's Table 4."""

import argparse
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError


def prepare(options: argparse.Namespace) -> None:
    from hybrid_tokenizer.apps.user_study.prepare import StudyOptions, prepare_study
    from hybrid_tokenizer.devices import choose_device
    from hybrid_tokenizer.evaluation.rows import rows_by_name
    from hybrid_tokenizer.hybrid import HybridTokenizer

    tokenizer = HybridTokenizer.from_pretrained(options.model).to(choose_device(options.device))
    baselines = dict(pair.partition("=")[::2] for pair in options.baseline)
    rows = rows_by_name(tokenizer, options.tokenizers.split(","), baselines)
    study = prepare_study(
        options.study, rows,
        StudyOptions(options.images, options.sets, options.image_size, options.seed, options.participants),
    )  # fmt: skip
    print(f"{len(study.sets)} sets of {', '.join(study.methods)} in {options.study}")
    if options.participants:
        print(f"participant codes: {options.study / 'codes.txt'}, one for each rater")
    print(f"next: python scripts/user_study.py serve {options.study}")


def serve(options: argparse.Namespace) -> None:
    from hybrid_tokenizer.apps.user_study.app import voting_app
    from hybrid_tokenizer.apps.user_study.study import VOTES_NAME, read_study
    from hybrid_tokenizer.apps.user_study.votes import Votes
    from hybrid_tokenizer.apps.web import serving

    study = read_study(options.study)
    votes = Votes(options.study / VOTES_NAME, study.id)
    access = serving.access_for(options.host, study.link_token, votes.is_known)
    try:
        serving.serve(voting_app(options.study, study, votes, access), options.host, options.port, access)
    finally:
        votes.close()


def results(options: argparse.Namespace) -> None:
    from hybrid_tokenizer.apps.user_study.results import write_results

    output = options.output or options.study / "results"
    print(f"{write_results(options.study, output, options.complete_only)}\nwritten to {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="prepare|serve|results")

    command = commands.add_parser("prepare", help="make the pictures of a study")
    command.add_argument(
        "study", type=Path, metavar="FOLDER", help="the folder to make; study.json in it names the methods"
    )
    command.add_argument(
        "--images", type=Path, metavar="FOLDER", help="draw from these; the built-in photographs otherwise"
    )
    command.add_argument("--tokenizers", default="hybrid,semantic_only,guide_only", help="rows by name (%(default)s)")
    command.add_argument("--baseline", action="append", default=[], metavar="NAME=WEIGHTS", help="as in seed=FOLDER")
    command.add_argument("--sets", type=int, default=25, help="images to draw (%(default)s)")
    command.add_argument("--image-size", type=int, default=256, help="pixels of a side (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the draw and of decoding (%(default)s)")
    command.add_argument("--participants", type=int, default=0, help="make so many codes and let nobody else in")
    command.add_argument("--model", default="tiny", help="preset, folder or hub id of the hybrid (%(default)s)")
    command.add_argument("--device", help="cpu, cuda; the GPU where there is one")
    command.set_defaults(run=prepare)

    command = commands.add_parser("serve", help="let raters vote; end it and start it again at any time")
    command.add_argument("study", type=Path, metavar="FOLDER")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to others, by a link with a token")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    command.set_defaults(run=serve)

    command = commands.add_parser("results", help="scores, win rates and agreement; also while people vote")
    command.add_argument("study", type=Path, metavar="FOLDER")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="FOLDER/results otherwise")
    command.add_argument("--complete-only", action="store_true", help="leave out who did not vote on every set")
    command.set_defaults(run=results)

    options = parser.parse_args()
    try:
        options.run(options)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
