"""Hybrid tokens in the vocabulary of a language model: any fast tokenizer and any causal model of transformers.

`add_image_tokens` gives a tokenizer the names `<img>`, `</img>`, `<sem_0000>`... and `<guide_00000>`..., whose ids are
those of `HybridVocabulary`; `resize_embeddings` gives a model their rows. A folder keeps both beside each other.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AddedToken, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.errors import HybridTokenizerError, first_line
from hybrid_tokenizer.tokens import HybridTokens, HybridVocabulary, TokenSource, check_source

VOCABULARY_NAME = "hybrid_vocabulary.json"
SQUARES = 0.5
"""Weight of the squares of a code's values beside the values. With both, a linear head can represent any Gaussian over the codes."""
ROWS_MULTIPLE = 64
"""Embedding rows are padded to a multiple of this: matrix products over the vocabulary are faster."""


class Codebooks(NamedTuple):
    """The vectors behind the indices of both branches."""

    semantic: Float[Tensor, "k c"]
    guide: Float[Tensor, "n d"]


def image_token_names(vocabulary: HybridVocabulary) -> list[str]:
    """Names of all ids from `vocabulary.begin_id` on, in order."""
    semantic = (f"<sem_{index:04d}>" for index in range(vocabulary.semantic_codebook_size))
    guide = (f"<guide_{index:05d}>" for index in range(vocabulary.guide_codebook_size))
    return ["<img>", "</img>", *semantic, *guide]


def add_image_tokens(tokenizer: PreTrainedTokenizerFast, vocabulary: HybridVocabulary) -> HybridVocabulary:
    """Add the image tokens after the tokenizer's own ids, in place.

    Returns:
        `vocabulary` with `text_vocab_size` set to the number of ids that the tokenizer had.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise HybridTokenizerError(
            f"the tokenizer is a {type(tokenizer).__name__}, expected a PreTrainedTokenizerFast; load it with "
            "AutoTokenizer.from_pretrained, or convert it to one"
        )
    text_ids = tokenizer.get_vocab()
    names = image_token_names(vocabulary)
    taken = [name for name in names if name in text_ids]
    if taken:
        raise HybridTokenizerError(
            f"the tokenizer already has {taken[0]!r} (id {text_ids[taken[0]]}) and {len(taken) - 1} more image tokens; "
            "give the tokenizer as it was before image tokens were added"
        )
    # special: never split, never normalised, left out of captions by skip_special_tokens
    tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)
    vocabulary = dataclasses.replace(vocabulary, text_vocab_size=max(text_ids.values()) + 1)
    check_tokenizer(tokenizer, vocabulary)
    return vocabulary


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, vocabulary: HybridVocabulary) -> None:
    """Raise when the tokenizer's image tokens do not have the ids of `vocabulary`."""
    ids = tokenizer.get_vocab()
    for token_id, name in enumerate(image_token_names(vocabulary), start=vocabulary.begin_id):
        if ids.get(name) != token_id:
            raise HybridTokenizerError(
                f"the tokenizer gives {name!r} the id {ids.get(name)}, the vocabulary says {token_id}; use the tokenizer "
                "and vocabulary of one folder, or add_image_tokens to the tokenizer of the language model"
            )


def text_of_tokens(tokens: HybridTokens, vocabulary: HybridVocabulary) -> list[str]:
    """Each image as text, `<img><sem_0012>...</img>`."""
    names = image_token_names(vocabulary)
    token_ids = tokens.to_token_ids(vocabulary) - vocabulary.begin_id
    return ["".join(names[token_id] for token_id in row) for row in token_ids.tolist()]


def tokens_of_text(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, vocabulary: HybridVocabulary
) -> HybridTokens:
    """The reverse of `text_of_tokens`: each text is one image, all with equally many grids."""
    rows = tokenizer(list(texts), add_special_tokens=False).input_ids
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise HybridTokenizerError(
            f"the texts have {sorted(lengths)} ids; give images with equally many grids, at least 1"
        )
    return HybridTokens.from_token_ids(torch.tensor(rows), vocabulary)


def text_ids_of(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Ids of plain texts, cut at `max_length`. A text that spells `<img>` stays text: no caption can forge an image."""
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, truncation=True, max_length=max_length
    )
    return encoded.input_ids


class Boundaries(NamedTuple):
    """The ids around a document. `begin` is empty for tokenizers without a first token."""

    begin: list[int]
    end: int


def document_boundaries(tokenizer: PreTrainedTokenizerFast) -> Boundaries:
    """The tokenizer's first and last token of a text; BERT's [CLS] and [SEP] where it has no others."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise HybridTokenizerError(
            "the tokenizer has no eos_token and no sep_token, and a model must be able to end; set tokenizer.eos_token"
        )
    return Boundaries([] if begin is None else [begin], end)


def fingerprint(vocabulary: HybridVocabulary) -> str:
    """sha256 of what the ids mean: offsets, sizes, grids and the hash of the tokenizer that made the codes."""
    facts = dataclasses.asdict(vocabulary) | {"source": vocabulary.source and vocabulary.source.hash}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def padded_rows(rows: int) -> int:
    """`rows` up to the next multiple of ROWS_MULTIPLE."""
    return -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


def resize_embeddings(
    model: PreTrainedModel,
    vocabulary: HybridVocabulary,
    generator: torch.Generator,
    codebooks: Codebooks | None = None,
) -> None:
    """Give `model` the rows of `vocabulary`, in place, and note the vocabulary in its configuration.

    Rows are padded to a multiple of 64 and never fewer than before. The text's rows stay as they are. Those after them
    are drawn from the mean and the covariance of the text's (Hewitt 2021), input and output embedding each from its own;
    with `codebooks`, the rows of codes are a random projection of the codes' vectors and their squares with the text's mean
    and variance, so that codes that look alike start alike.
    """
    old_rows = model.get_input_embeddings().weight.shape[0]
    if old_rows < vocabulary.text_vocab_size:
        raise HybridTokenizerError(
            f"the model has {old_rows} embedding rows, its tokenizer {vocabulary.text_vocab_size} ids; give the tokenizer "
            "of this model"
        )
    model.resize_token_embeddings(padded_rows(max(old_rows, vocabulary.size)), mean_resizing=False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    for layer in layers:
        _start_rows(layer, vocabulary, generator, codebooks)
    model.config.hybrid_vocabulary = fingerprint(vocabulary)


@torch.no_grad()
def _start_rows(
    layer: nn.Module, vocabulary: HybridVocabulary, generator: torch.Generator, codebooks: Codebooks | None
) -> None:
    weight = layer.weight
    text = weight[: vocabulary.text_vocab_size].double().cpu()
    mean, deviation = text.mean(0), text.std()
    num_new = weight.shape[0] - vocabulary.text_vocab_size
    # the eigenvalues of a covariance are not negative, apart from rounding
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.cov(text.T))
    root = eigenvectors * eigenvalues.clamp(min=0).sqrt()
    new = mean + torch.randn(num_new, len(mean), generator=generator, dtype=torch.float64) @ root.T
    if codebooks is not None:
        first = vocabulary.semantic_offset - vocabulary.text_vocab_size
        for codes, size in zip(
            codebooks, (vocabulary.semantic_codebook_size, vocabulary.guide_codebook_size), strict=True
        ):
            if len(codes) != size:
                raise HybridTokenizerError(f"a codebook has {len(codes)} vectors, the vocabulary {size}; give its own")
            codes = codes.detach().double().cpu()
            codes = (codes - codes.mean(0)) / codes.std(0).clamp(min=1e-12)
            codes = torch.cat([codes, SQUARES * (codes.square() - 1)], dim=1)
            projection = torch.randn(codes.shape[1], len(mean), generator=generator, dtype=torch.float64)
            new[first : first + size] = mean + codes @ projection * (deviation / codes.shape[1] ** 0.5)
            first += size
    weight[vocabulary.text_vocab_size :] = new.to(weight)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        bias[vocabulary.text_vocab_size :] = bias[: vocabulary.text_vocab_size].mean()


def check_model(model: PreTrainedModel, vocabulary: HybridVocabulary) -> None:
    """Raise when `model` was not resized for `vocabulary`."""
    rows = model.get_input_embeddings().weight.shape[0]
    noted = getattr(model.config, "hybrid_vocabulary", None)
    if noted != fingerprint(vocabulary) or rows < vocabulary.size:
        what = "no image vocabulary" if noted is None else f"the image vocabulary {noted[:12]}"
        raise HybridTokenizerError(
            f"the language model has {what} and {rows} rows, these tokens need {fingerprint(vocabulary)[:12]} and "
            f"{vocabulary.size} rows; use the model that was trained on them, or resize_embeddings of a new one"
        )


def save_vocabulary(folder: str | Path, tokenizer: PreTrainedTokenizerFast, vocabulary: HybridVocabulary) -> None:
    """The tokenizer's files and `hybrid_vocabulary.json`, which names the tokenizer of the images and its hash."""
    check_tokenizer(tokenizer, vocabulary)
    folder = Path(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / VOCABULARY_NAME, dataclasses.asdict(vocabulary))


def load_vocabulary(
    folder: str | Path, source: TokenSource | None = None
) -> tuple[PreTrainedTokenizerFast, HybridVocabulary]:
    """What `save_vocabulary` wrote.

    Args:
        source: the image tokenizer in use; one with another hash is refused.
    """
    folder = Path(folder)
    facts = read_json(folder / VOCABULARY_NAME)
    try:
        stored = TokenSource(*facts["source"]) if facts["source"] is not None else None
        shapes = tuple((height, width) for height, width in facts["grid_shapes"])
        height, width = facts["image_size"]
        vocabulary = HybridVocabulary(
            **facts | {"source": stored, "grid_shapes": shapes, "image_size": (height, width)}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise HybridTokenizerError(
            f"{folder / VOCABULARY_NAME} is not a vocabulary of images ({error}); give a folder that train-lm wrote"
        ) from None
    check_source(vocabulary.source, source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise HybridTokenizerError(
            f"no tokenizer can be read from {folder} ({first_line(error)}); give a folder that train-lm wrote"
        ) from None
    check_tokenizer(tokenizer, vocabulary)
    return tokenizer, vocabulary


def budget_of(vocabulary: HybridVocabulary, num_tokens: int) -> int:
    """How many grids an image of `num_tokens` tokens has (36, 52, 116 or 372 for the embedded preset)."""
    totals = budgets(vocabulary)
    if num_tokens not in totals:
        raise HybridTokenizerError(f"budget={num_tokens} is no number of tokens of an image; use one of {totals}")
    return totals.index(num_tokens) + 1


def budgets(vocabulary: HybridVocabulary) -> list[int]:
    """Tokens per image with the first 1, 2, ... grids, `<img>` and `</img>` not counted."""
    return [length - 2 for length in vocabulary.sequence_lengths]


class Written(NamedTuple):
    """What a sequence of ids says: its text without the boundary tokens, and its images in order."""

    text_ids: list[int]
    images: list[HybridTokens]


def read_sequence(token_ids: Sequence[int], vocabulary: HybridVocabulary) -> Written:
    """Take a sequence of a language model apart. Raises HybridTokenizerError when an image in it is not whole."""
    text, images, opened = [], [], None
    for position, token_id in enumerate(token_ids):
        if token_id == vocabulary.begin_id and opened is None:
            opened = position
        elif token_id == vocabulary.end_id and opened is not None:
            ids = torch.tensor(token_ids[opened : position + 1])
            images.append(vocabulary.from_token_ids(ids[None]))
            opened = None
        elif opened is None:
            if token_id >= vocabulary.begin_id:
                raise HybridTokenizerError(
                    f"id {token_id} at position {position} is of an image and stands outside of <img> and </img>; "
                    "constrain the decoding with ImageGrammar"
                )
            text.append(token_id)
    if opened is not None:
        raise HybridTokenizerError(
            f"the image that begins at position {opened} has no </img>; let the model write "
            f"{vocabulary.sequence_lengths[-1]} ids from <img> on"
        )
    return Written(text, images)
