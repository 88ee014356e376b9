"""`hybrid-tokenizer complete`, from a checkout."""

from hybrid_tokenizer.commands.cli import run

if __name__ == "__main__":
    run("complete")
