"""Rows of token shards as documents of a language model, and the stream of them that training draws from."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import DocumentConfig
from hybrid_tokenizer.language.vocabulary import Boundaries, document_boundaries, text_ids_of
from hybrid_tokenizer.tokens import NUM_SEMANTIC_TOKENS, HybridVocabulary

TEXT, CAPTION, BOUNDARY, SEMANTIC = range(4)
FIRST_GRID = 4
"""Kinds of tokens: text before an image, text after one, what surrounds an image, its semantic codes, and one kind per grid."""


@runtime_checkable
class TokenRows(Protocol):
    """What is read of token shards: rows with `id`, `captions` (any number), `semantic` (32 codes), `guide` (all grids'
    codes, coarse to fine, each in raster order), `grid_shapes` and `image_size`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Document(NamedTuple):
    """Ids of one training sequence and the kind of each."""

    ids: np.ndarray
    kinds: np.ndarray


def kind_names(vocabulary: HybridVocabulary) -> list[str]:
    """Names of the kinds, in their order."""
    return ["text", "caption", "boundary", "semantic", *(f"guide_{h}x{w}" for h, w in vocabulary.grid_shapes)]


def kind_range(kind: int, vocabulary: HybridVocabulary) -> tuple[int, int]:
    """The ids that a token of this kind can be under constrained decoding: from the first up to before the second."""
    if kind in (TEXT, CAPTION):
        return 0, vocabulary.begin_id
    if kind == BOUNDARY:
        return 0, vocabulary.semantic_offset
    if kind == SEMANTIC:
        return vocabulary.semantic_offset, vocabulary.guide_offset
    return vocabulary.guide_offset, vocabulary.size


def compose(
    row: Mapping[str, Any],
    caption_ids: Sequence[int],
    num_grids: int,
    image_first: bool,
    vocabulary: HybridVocabulary,
    boundaries: Boundaries,
) -> Document:
    """One document: caption and image, or image and caption, with the first `num_grids` grids."""
    check_row(row, vocabulary)
    sizes = [height * width for height, width in vocabulary.grid_shapes[:num_grids]]
    semantic = np.asarray(row["semantic"], np.int64) + vocabulary.semantic_offset
    guide = np.asarray(row["guide"][: sum(sizes)], np.int64) + vocabulary.guide_offset
    image = [
        ([vocabulary.begin_id], [BOUNDARY]),
        (semantic, np.full(len(semantic), SEMANTIC)),
        (guide, np.repeat(np.arange(num_grids) + FIRST_GRID, sizes)),
        ([vocabulary.end_id], [BOUNDARY]),
    ]
    text = [(list(caption_ids), [CAPTION if image_first else TEXT] * len(caption_ids))]
    begin = [(boundaries.begin, [BOUNDARY] * len(boundaries.begin))]
    end = [([boundaries.end], [CAPTION if image_first and len(caption_ids) else BOUNDARY])]
    parts = begin + (image + text if image_first else text + image) + end
    ids, kinds = (np.concatenate([np.asarray(part[i], np.int64) for part in parts]) for i in (0, 1))
    return Document(ids, kinds)


def check_row(row: Mapping[str, Any], vocabulary: HybridVocabulary) -> None:
    """Raise when a row's image is not one of this vocabulary."""
    shapes = tuple(tuple(shape) for shape in row["grid_shapes"])
    if shapes != vocabulary.grid_shapes or tuple(row["image_size"]) != vocabulary.image_size:
        raise HybridTokenizerError(
            f"row {row['id']!r} has guide grids {shapes} of a {tuple(row['image_size'])} image, the vocabulary is for "
            f"{vocabulary.grid_shapes} of {vocabulary.image_size}; tokenize the corpus with one size and all grids"
        )
    codes = ("semantic", vocabulary.semantic_codebook_size), ("guide", vocabulary.guide_codebook_size)
    for name, size in codes:
        if max(row[name]) >= size or min(row[name]) < 0:
            raise HybridTokenizerError(
                f"row {row['id']!r} has {name} codes up to {max(row[name])}, the vocabulary has {size}; give the shards of "
                "the same image tokenizer"
            )
    lengths = len(row["semantic"]), len(row["guide"])
    expected = NUM_SEMANTIC_TOKENS, sum(height * width for height, width in vocabulary.grid_shapes)
    if lengths != expected:
        raise HybridTokenizerError(f"row {row['id']!r} has {lengths} semantic and guide codes, expected {expected}")


class DocumentStream(Dataset):
    """Endless shuffled epochs over rows, addressed by draw number, as `TrainingStream` is over images.

    Each epoch is a permutation seeded by (seed, epoch); caption, order and budget of a draw are seeded by (seed, draw).
    """

    def __init__(
        self,
        rows: TokenRows,
        vocabulary: HybridVocabulary,
        tokenizer: PreTrainedTokenizerFast,
        config: DocumentConfig,
        seed: int,
    ):
        if not len(rows):
            raise HybridTokenizerError("the token shards hold no rows; tokenize some images first")
        num_grids = len(vocabulary.grid_shapes)
        weights = [1.0] * num_grids if config.budget_weights is None else config.budget_weights
        if len(weights) != num_grids:
            raise HybridTokenizerError(
                f"documents.budget_weights={weights} has {len(weights)} numbers for {num_grids} guide grids; give one each"
            )
        self.rows, self.vocabulary, self.tokenizer, self.config, self.seed = rows, vocabulary, tokenizer, config, seed
        self.boundaries = document_boundaries(tokenizer)
        self.budget_shares = np.asarray(weights) / sum(weights)
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.rows))

    def __getstate__(self) -> dict[str, Any]:  # an lru_cache cannot be pickled to spawned workers
        return {name: value for name, value in vars(self).items() if name != "_permutation"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, position = divmod(draw, len(self.rows))
        row = self.rows[int(self._permutation(epoch)[position])]
        rng = np.random.default_rng((self.seed, 1, draw))
        # every draw is made each time, so that one option does not shift the others' randomness
        order, dropout, which = rng.random(3)
        num_grids = 1 + int(rng.choice(len(self.budget_shares), p=self.budget_shares))
        captions = row["captions"] if dropout >= self.config.caption_dropout else []
        caption_ids: list[int] = []
        if len(captions):
            caption = captions[int(which * len(captions))]
            caption_ids = text_ids_of(self.tokenizer, [caption], self.config.max_caption_tokens)[0]
        image_first = bool(order < self.config.image_first)
        document = compose(row, caption_ids, num_grids, image_first, self.vocabulary, self.boundaries)
        return {"documents": document, "skipped": []}
