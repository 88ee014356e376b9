"""Rows of token shards as documents of a language model, and the stream of them that training draws from."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import DocumentConfig
from hybrid_tokenizer.language.vocabulary import Boundaries, document_boundaries, text_ids_of
from hybrid_tokenizer.tokens import HybridTokens, HybridVocabulary, TokenSource, check_source

TEXT, CAPTION, BOUNDARY, SEMANTIC = range(4)
FIRST_GRID = 4
"""Kinds of tokens: text before an image, text after one, what surrounds an image, its semantic codes, and one kind per grid."""


CODES = ("semantic", "guide")


@runtime_checkable
class TokenRows(Protocol):
    """What is read of token shards: rows with `id`, `captions` (any number), `semantic` (32 codes) and `guide` (the codes of
    all grids, coarse to fine, each in raster order), and what holds for all rows."""

    grid_shapes: tuple[tuple[int, int], ...]
    image_size: tuple[int, int]
    source: TokenSource | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class JoinedRows:
    """Rows of several shards as one, all of them or those at the positions `chosen`."""

    def __init__(self, parts: Sequence[TokenRows], chosen: np.ndarray | None = None):
        first = parts[0]
        for part in parts[1:]:
            for what in ("grid_shapes", "image_size", "source"):
                if getattr(part, what) != getattr(first, what):
                    raise HybridTokenizerError(
                        f"token shards differ in {what}: {getattr(first, what)} and {getattr(part, what)}; tokenize them "
                        "with one tokenizer and one image size"
                    )
        self.parts, self.grid_shapes, self.image_size, self.source = (
            list(parts), first.grid_shapes, first.image_size, first.source,
        )  # fmt: skip
        self.ends = np.cumsum([len(part) for part in parts])
        self.chosen = np.arange(self.ends[-1]) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = int(self.chosen[index])
        part = int(np.searchsorted(self.ends, row, side="right"))
        return self.parts[part][row - (int(self.ends[part - 1]) if part else 0)]


def hold_out_rows(rows: JoinedRows, share: float) -> tuple[JoinedRows, JoinedRows]:
    """(training, held-out) rows, by the hash of the image's name, so that all views of an image fall on one side."""
    names = [rows[index]["id"].rsplit("#", 1)[0] for index in range(len(rows))]
    hashed = np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names])
    held = hashed < int(share * 2**64)
    if not held.any() or held.all():
        raise HybridTokenizerError(
            f"data.val_share={share} of {len(rows)} rows holds out {int(held.sum())}; give another share, or "
            "data.val_tokens"
        )
    return JoinedRows(rows.parts, rows.chosen[~held]), JoinedRows(rows.parts, rows.chosen[held])


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


def check_rows(rows: TokenRows, vocabulary: HybridVocabulary) -> None:
    """Raise when the rows' images are not those of this vocabulary."""
    check_source(rows.source, vocabulary.source)
    if rows.grid_shapes != vocabulary.grid_shapes or rows.image_size != vocabulary.image_size:
        raise HybridTokenizerError(
            f"the token shards have guide grids {rows.grid_shapes} of {rows.image_size} images, the vocabulary is for "
            f"{vocabulary.grid_shapes} of {vocabulary.image_size}; tokenize with that image size and all grids"
        )


def tokens_of_rows(rows: Sequence[Mapping[str, Any]], vocabulary: HybridVocabulary) -> HybridTokens:
    """The images of some rows."""
    semantic, guide = (torch.from_numpy(np.stack([np.asarray(row[name]) for row in rows])) for name in CODES)
    grids = guide.split([height * width for height, width in vocabulary.grid_shapes], dim=1)
    return HybridTokens(
        semantic_indices=semantic,
        guide_indices=tuple(
            grid.unflatten(1, shape) for grid, shape in zip(grids, vocabulary.grid_shapes, strict=True)
        ),
        image_size=vocabulary.image_size,
        source=vocabulary.source,
    )


def row_of_tokens(tokens: HybridTokens, index: int, name: str, captions: Sequence[str]) -> dict[str, Any]:
    """One image of a batch as a row."""
    guide = torch.cat([grid[index].flatten() for grid in tokens.guide_indices])
    return {"id": name, "captions": captions, "semantic": tokens.semantic_indices[index].cpu(), "guide": guide.cpu()}


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
        check_rows(rows, vocabulary)
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
