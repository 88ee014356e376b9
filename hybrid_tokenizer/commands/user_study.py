"""Prepare a blind ranking of reconstructions, serve it to raters, and turn their votes into the paper's Table 4."""

import argparse
from pathlib import Path

from hybrid_tokenizer.errors import HybridTokenizerError

# the subcommands import what they need, so that `--help` needs no model library


def prepare(options: argparse.Namespace) -> None:
    """Reconstruct the pictures of a study and write its folder."""
    from hybrid_tokenizer.commands.picture_files import check_exists

    check_exists("--images ", options.images, "a folder of images")
    from hybrid_tokenizer.apps.user_study.prepare import StudyOptions, prepare_study
    from hybrid_tokenizer.apps.user_study.study import CONSENT_NAME
    from hybrid_tokenizer.data.config import say_other_size
    from hybrid_tokenizer.devices import choose_device
    from hybrid_tokenizer.evaluation.rows import rows_by_name
    from hybrid_tokenizer.hybrid import HybridTokenizer

    tokenizer = HybridTokenizer.from_pretrained(options.model).to(choose_device(options.device))
    resized = "images are resized for the hybrid, and its images back"
    say_other_size("--image-size", options.image_size, tokenizer.native_size, resized)
    tokenizer.render_size = options.render_size or tokenizer.diffusion.config.trained_size
    baselines = dict(pair.partition("=")[::2] for pair in options.baseline)
    rows = rows_by_name(tokenizer, options.tokenizers.split(","), baselines)
    study = prepare_study(
        options.study, rows,
        StudyOptions(options.images, options.sets, options.image_size, options.seed, options.participants),
    )  # fmt: skip
    print(f"{len(study.sets)} sets of {', '.join(study.methods)} in {options.study}")
    if options.participants:
        print(f"participant codes, one for each rater: {options.study / 'codes.txt'}")
    trial = "one more for a trial" if study.trial else "no trial set, because there are no more images"
    print(f"{trial}; edit {options.study / CONSENT_NAME}, which participants read before they start")
    print(f"next: hybrid-tokenizer user-study serve {options.study}")


def serve(options: argparse.Namespace) -> None:
    """Serve a study's voting page until interrupted."""
    from hybrid_tokenizer.apps.user_study.app import voting_app
    from hybrid_tokenizer.apps.user_study.study import VOTES_NAME, read_study
    from hybrid_tokenizer.apps.user_study.votes import Votes
    from hybrid_tokenizer.apps.web import serving

    study = read_study(options.study)
    votes = Votes(options.study / VOTES_NAME, study.id)
    access = serving.access_for(options.host, study.link_token, votes.is_known)
    try:
        owners = ("results", study.owner_token) if study.owner_token else None
        serving.serve(voting_app(options.study, study, votes, access), options.host, options.port, access, owners)
    finally:
        votes.close()


def results(options: argparse.Namespace) -> None:
    """Write and print the results of the votes so far."""
    from hybrid_tokenizer.apps.user_study.results import write_results

    output = options.output or options.study / "results"
    print(f"{write_results(options.study, output, options.complete_only)}\nwritten to {output}")


def build_parser() -> argparse.ArgumentParser:
    """The three subcommands and their options."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="prepare|serve|results")

    command = commands.add_parser("prepare", help="reconstruct the pictures of a study")
    command.add_argument(
        "study", type=Path, metavar="FOLDER", help="the folder to create; its study.json names the methods"
    )
    command.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="draw images from this folder; without it, the built-in photographs",
    )
    command.add_argument("--tokenizers", default="hybrid,semantic_only,guide_only", help="rows by name (%(default)s)")
    command.add_argument(
        "--baseline", action="append", default=[], metavar="NAME=WEIGHTS", help="add a baseline, e.g. seed=FOLDER"
    )
    command.add_argument("--sets", type=int, default=25, help="number of images to draw (%(default)s)")
    command.add_argument("--image-size", type=int, default=256, help="side of the images in pixels (%(default)s)")
    command.add_argument(
        "--render-size", type=int, help="side at which diffusion draws; what the diffusion model was trained for"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the draw and of decoding (%(default)s)")
    command.add_argument(
        "--participants",
        type=int,
        default=0,
        help="make this many codes and admit their owners only; 0 admits everyone",
    )
    command.add_argument("--model", default="tiny", help="preset, folder or hub id of the hybrid (%(default)s)")
    command.add_argument("--device", help="cpu or cuda; the GPU if there is one")
    command.set_defaults(run=prepare)

    command = commands.add_parser("serve", help="let raters vote; it can be stopped and started again at any time")
    command.add_argument("study", type=Path, metavar="FOLDER")
    command.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 admits other machines, by a link with a token (%(default)s)"
    )
    command.add_argument("--port", type=int, default=8000, help="0 picks a free port (%(default)s)")
    command.set_defaults(run=serve)

    command = commands.add_parser("results", help="scores, win rates and agreement; also while people vote")
    command.add_argument("study", type=Path, metavar="FOLDER")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="where to write them (FOLDER/results)")
    command.add_argument("--complete-only", action="store_true", help="leave out raters who did not vote on every set")
    command.set_defaults(run=results)
    return parser


def main() -> None:
    options = build_parser().parse_args()
    try:
        options.run(options)
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
