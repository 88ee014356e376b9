"""From options to what the training loop takes: tokenizer, vocabulary, model, and validation documents."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.language.config import LanguageModelConfig
from hybrid_tokenizer.language.documents import TokenRows, check_rows, compose
from hybrid_tokenizer.language.model import (
    MODEL_FILES,
    LanguageModel,
    build_model,
    read_text_tokenizer,
    train_text_tokenizer,
)
from hybrid_tokenizer.language.vocabulary import (
    VOCABULARY_NAME,
    Codebooks,
    add_image_tokens,
    document_boundaries,
    load_vocabulary,
    save_vocabulary,
    text_ids_of,
)
from hybrid_tokenizer.tokens import HybridVocabulary

VOCABULARY_FOLDER = "vocabulary"
"""Inside a run's folder: the tokenizer that it trains with. A resumed run reads it again."""
MAX_BPE_ROWS = 200_000
"""Rows whose captions train a new text tokenizer."""


def start_language_model(
    config: LanguageModelConfig, rows: TokenRows, hybrid: HybridTokenizer, output_dir: Path, seed: int
) -> LanguageModel:
    """The model of a training run, with the rows' image vocabulary."""
    images = hybrid.vocabulary(0, rows.image_size)
    check_rows(rows, images)
    tokenizer, vocabulary = start_vocabulary(config, rows, images, output_dir / VOCABULARY_FOLDER)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return LanguageModel(
        build_model(config, tokenizer, vocabulary, codebooks_of(hybrid), generator), tokenizer, vocabulary
    )


def codebooks_of(hybrid: HybridTokenizer) -> Codebooks:
    """The vectors of all codes."""
    parts = [
        branch.quantizer.codes(torch.arange(branch.codebook_size, device=hybrid.device)).detach().float().cpu()
        for branch in (hybrid.semantic, hybrid.guide)
    ]
    return Codebooks(*parts)


def start_vocabulary(
    config: LanguageModelConfig, rows: TokenRows, images: HybridVocabulary, folder: Path
) -> tuple[PreTrainedTokenizerFast, HybridVocabulary]:
    """The text tokenizer with image tokens: that of an earlier start in `folder`, else by the options, kept in `folder`."""
    if (folder / VOCABULARY_NAME).is_file():
        return load_vocabulary(folder, images.source)
    source = config.tokenizer or config.base
    if source is None:
        tokenizer = train_text_tokenizer(_captions(rows), config.text_vocab_size)
    else:
        revision = config.revision if source == config.base else None
        home = hub.folder(source, expected="the folder of a tokenizer", revision=revision, patterns=MODEL_FILES)
        if (home / VOCABULARY_NAME).is_file():  # a base that was trained on image tokens before
            return load_vocabulary(home, images.source)
        tokenizer = read_text_tokenizer(str(home))
    vocabulary = add_image_tokens(tokenizer, images)
    _keep(folder, tokenizer, vocabulary)
    return tokenizer, vocabulary


def _captions(rows: TokenRows) -> Iterator[str]:
    for index in range(min(len(rows), MAX_BPE_ROWS)):
        yield from rows[index]["captions"]


def _keep(folder: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: HybridVocabulary) -> None:
    """The folder appears whole, once; every process of a distributed run comes to the same content."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        whole = Path(scratch) / "whole"
        save_vocabulary(whole, tokenizer, vocabulary)
        try:
            os.rename(whole, folder)
        except OSError:
            if not (folder / VOCABULARY_NAME).is_file():  # otherwise another process was first
                raise


def validation_documents(
    rows: TokenRows, lm: LanguageModel, max_rows: int, batch_size: int, max_caption_tokens: int
) -> list[dict[str, Any]]:
    """Rows spread over the set, at the full budget with their first caption, in both orders."""
    if not len(rows):
        raise HybridTokenizerError(
            "the validation shards hold no rows; give others, or null to hold out part of the training's"
        )
    count = min(len(rows), max_rows)
    boundaries = document_boundaries(lm.tokenizer)
    documents = []
    for index in torch.linspace(0, len(rows) - 1, count).tolist():
        row = rows[round(index)]
        texts = list(row["captions"])[:1]
        caption_ids = text_ids_of(lm.tokenizer, texts, max_caption_tokens)[0] if texts else []
        for image_first in (False, True) if texts else (False,):
            documents.append(
                compose(row, caption_ids, len(lm.vocabulary.grid_shapes), image_first, lm.vocabulary, boundaries)
            )
    return [
        {"documents": documents[start : start + batch_size], "skipped": []}
        for start in range(0, len(documents), batch_size)
    ]
