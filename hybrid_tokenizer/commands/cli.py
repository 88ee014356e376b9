"""`hybrid-tokenizer COMMAND ...`: one name for every command. A command's module is imported when it runs.

`scripts/NAME.py` and `python -m hybrid_tokenizer.commands.cli COMMAND` enter here too, so that help, paths and messages are the same.
"""

import difflib
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import NamedTuple

from hybrid_tokenizer.errors import HybridTokenizerError, optional

PROGRAM = "hybrid-tokenizer"
HELP_FLAGS = ("-h", "--help")
FLAGS_WITH_A_VALUE = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--config-dir",
    "-cd",
)
"""Of Hydra."""


class Command(NamedTuple):
    """A row of the table."""

    module: str
    """`hybrid_tokenizer.commands.MODULE`, whose `main` takes the rest of the command line."""
    purpose: str
    example: str
    """Arguments that work."""
    config: str | None = None
    """`configs/NAME.yaml` of a command that takes `key=value`. None: the module parses its own options."""
    path: str | None = None
    """The option that an argument without `=` sets."""
    extra: str | None = None
    """The extra of pyproject.toml that it needs. None: a plain installation runs it."""


# fmt: off
COMMANDS = {
    "reconstruct": Command("reconstruct", "reconstruct an image or a folder of images", "cat.png output_dir=out", "reconstruct", "input"),
    "encode": Command("encode", "images to files of tokens", "cat.png --output tokens"),
    "decode": Command("decode", "files of tokens to images", "tokens/cat.safetensors --output decoded"),
    "list": Command("list_models", "the embedded presets, and the baselines with their licences", ""),
    "eval": Command("eval_recon", "the table of reconstructions: quality, tokens and bits of each row", "data.root=PHOTOS output_dir=out/eval", "eval_recon", extra="eval"),
    "eval-alignment": Command("eval_alignment", "how well decoded images fit their captions", "data.root=PAIRS output_dir=out/alignment", "eval_alignment", extra="eval"),
    "study": Command("eval_study", "the studies behind the paper's figures", "study=decode_sweep data.root=PHOTOS output_dir=out/sweep", "eval_study", extra="eval"),
    "user-study": Command("user_study", "a blind ranking of reconstructions by people", "prepare my_study --images PHOTOS", extra="web"),
    "demo": Command("demo", "a web page that turns a photograph into tokens and back", "--port 8001", extra="web"),
    "train-guide": Command("train_guide", "train Branch I, the guide tokens", "data.root=PHOTOS output_dir=runs/guide training.max_steps=2000", "train_guide", extra="train"),
    "train-semantic": Command("train_semantic", "train Branch II, the semantic tokens", "stage=contrastive data.root=PAIRS output_dir=runs/semantic", "train_semantic", extra="train"),
    "pretrain-diffusion": Command("pretrain_diffusion", "train Branch III, the diffusion decoder", "stage=vae data.root=PHOTOS output_dir=runs/vae", "pretrain_diffusion", extra="train"),
    "assemble": Command("assemble", "put the folders of three branches together as one tokenizer", "--guide runs/guide/final --semantic runs/semantic/final --diffusion runs/unet/final --output my_tokenizer --name mine"),
    "convert": Command("convert", "published checkpoint files to a component folder", "movq movqgan_270M.ckpt --output movq_270m"),
    "parity": Command("check_parity", "compare with values that published code computed", "FIXTURES", extra="eval"),
    "benchmark": Command("benchmark", "time the system against plain alternatives", "output=out/speed.json", "benchmark", extra="eval"),
    "gpu-check": Command("gpu_check", "check the CUDA path on a GPU, or every section in small on a CPU", "--pictures PHOTOS --output out/gpu", extra="eval"),
    "tokenize": Command("tokenize_corpus", "a corpus of images to shards of tokens", "input=PHOTOS output=tokens", "tokenize_corpus", extra="scale"),
    "detokenize": Command("detokenize", "a picture grid of rows of token shards", "tokens output=grid.png", "detokenize", "input", extra="scale"),
    "inspect": Command("inspect_tokens", "use, cost and robustness of token shards", "tokens output_dir=out/inspect", "inspect_tokens", "input", extra="scale"),
    "train-lm": Command("train_lm", "train a language model on tokens of images and captions", "data.tokens=tokens output_dir=runs/lm", "train_lm", extra="language"),
    "generate": Command("generate", "draw images from a caption", "'prompt=a dog on the grass' output_dir=out/generate", "generate", extra="language"),
    "caption": Command("caption", "write captions of images", "cat.png", "caption", "input", extra="language"),
    "complete": Command("complete", "draw the rest of an image from its first tokens", "cat.png output_dir=out/complete", "complete", "input", extra="language"),
    "eval-lm": Command("eval_lm", "measure a language model on held-out photographs", "train_tokens=tokens data.root=PAIRS", "eval_lm", extra="language"),
}
# fmt: on


def overview() -> str:
    """The help of the program: every command and its purpose."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {command.purpose}" for name, command in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND ...\n\nImages to semantic tokens and guide tokens, and back through diffusion.\n\n"
        f"commands:\n{rows}\n\n`{PROGRAM} COMMAND --help` explains a command. `{PROGRAM} --version` prints the version."
    )


def with_paths(command: Command, arguments: Sequence[str]) -> list[str]:
    """The arguments, in which a path alone is an override of the command's path option."""
    if command.path is None:
        return list(arguments)
    alone = [
        "=" not in one and not one.startswith("-") and before not in FLAGS_WITH_A_VALUE
        for before, one in pairwise(["", *arguments])
    ]
    return [f"{command.path}={one}" if path else one for path, one in zip(alone, arguments, strict=True)]


def run(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command, or print its help.

    Args:
        arguments: what follows the command's name. None: what follows the script's name on the command line.
    """
    command = COMMANDS[name]
    given = with_paths(command, sys.argv[1:] if arguments is None else arguments)
    program = sys.argv[0] if arguments is None else f"{PROGRAM} {name}"
    if command.config is not None and set(HELP_FLAGS) & set(given):
        from hybrid_tokenizer.commands.help import help_text

        shown = program if arguments is not None else f"python {program}"
        others = [one for one in given if one not in HELP_FLAGS]
        print(help_text(shown, command.purpose, command.example, command.config, command.path, others))
        return
    sys.argv = [program, *given]
    try:
        with optional(command.extra):
            import_module(f"hybrid_tokenizer.commands.{command.module}").main()
    except HybridTokenizerError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt as interrupt:  # what is finished is said by who kept it
        print(f"\ninterrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def main() -> None:
    """The console command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in HELP_FLAGS:
        print(overview())
    elif name == "--version":
        from hybrid_tokenizer import __version__

        print(__version__)
    elif name in COMMANDS:
        run(name, arguments)
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {PROGRAM} {close[0]}?" if close else f"see {PROGRAM} --help"
        raise SystemExit(f"error: no command {name!r}; {remedy}")


if __name__ == "__main__":
    main()
