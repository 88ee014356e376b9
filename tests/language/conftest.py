"""A small image tokenizer, pictures with captions, their tokens, and a run of train_lm on them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.corpora import SIDE, fill, write_folder, write_tokenizer
from lm_runs import train_lm

from hybrid_tokenizer.corpus.config import TokenizeConfig, ViewConfig


@dataclass
class Corpus:
    tokenizer: Path
    pictures: Path
    tokens: Path

    def options(self, output_dir, **training):
        """For train_lm."""
        options = [f"model_name={self.tokenizer}", f"data.tokens={self.tokens}", f"output_dir={output_dir}"]
        return [*options, *(f"training.{name}={value}" for name, value in training.items())]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Corpus:
    """30 pictures of 32 px; images of 33, 37 and 53 tokens."""
    root = tmp_path_factory.mktemp("language")
    tokenizer, pictures = write_tokenizer(root / "small"), write_folder(root / "pictures", 30)
    config = TokenizeConfig(
        input=str(pictures), output=str(root / "tokens"), model_name=str(tokenizer), data=ViewConfig(image_size=SIDE),
        batch_size=10, rows_per_part=10, rows_per_group=8,
    )  # fmt: skip
    return Corpus(tokenizer, pictures, fill(config, shards=2))


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory) -> Path:
    """Six steps, a checkpoint after each second, and pictures."""
    folder = tmp_path_factory.mktemp("language") / "run"
    said = train_lm(*corpus.options(folder, max_steps=6, save_every=2, validate_every=3), "pictures=2")
    assert said == ["starting from step 0", "finished at step 6"]
    return folder
