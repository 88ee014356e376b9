"""A small tokenizer, pictures and their tokens."""

from pathlib import Path

import pytest
from helpers.corpora import SIDE, fill, write_folder, write_tokenizer

from hybrid_tokenizer.corpus.config import TokenizeConfig, ViewConfig


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("corpus") / "pictures", 43)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory, tokenizer_folder, pictures) -> Path:
    """43 rows in 3 files with row groups of 4."""
    return fill(
        TokenizeConfig(
            input=str(pictures), output=str(tmp_path_factory.mktemp("corpus") / "tokens"), model_name=str(tokenizer_folder),
            data=ViewConfig(image_size=SIDE), batch_size=4, rows_per_part=8, rows_per_group=4,
        ),
        shards=3,
    )  # fmt: skip
