"""`hybrid-tokenizer eval-lm`, from a checkout."""

from hybrid_tokenizer.commands.cli import run

if __name__ == "__main__":
    run("eval-lm")
