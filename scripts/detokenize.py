"""`hybrid-tokenizer detokenize`, from a checkout."""

from hybrid_tokenizer.commands.cli import run

if __name__ == "__main__":
    run("detokenize")
