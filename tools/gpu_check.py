"""`hybrid-tokenizer gpu-check`, from a checkout."""

from hybrid_tokenizer.commands.cli import run

if __name__ == "__main__":
    run("gpu-check")
