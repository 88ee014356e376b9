"""Encode a corpus of images into token shards on Ray Data. Resumes where a killed run stopped."""

from hybrid_tokenizer.commands.config import command
from hybrid_tokenizer.corpus.config import TokenizeConfig
from hybrid_tokenizer.corpus.run import tokenize
from hybrid_tokenizer.errors import printable


@command("tokenize_corpus")
def main(config: TokenizeConfig) -> None:
    dataset = tokenize(config)
    for one in dataset["skipped"]:
        print(f"skipped {printable(one['key'])}: {one['reason']}")
    print(
        f"{dataset['num_rows']} rows of {dataset['tokens_per_row']} tokens, {dataset['num_skipped']} images skipped; "
        f"written to {config.output}"
    )
