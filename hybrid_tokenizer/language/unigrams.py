"""What a language model must beat: the frequency of each code, over all positions or at each position.

Both are smoothed, and their smoothing is chosen on the held-out tokens themselves. A model is thus compared with the best
that these tables could do.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from hybrid_tokenizer.language.documents import CODES, TokenRows
from hybrid_tokenizer.tokens import NUM_SEMANTIC_TOKENS, HybridVocabulary

ADDED = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Added to each code's count."""
BACKED_OFF = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 100_000.0)
"""Counts that the frequency over all positions is worth at each position."""


class UnigramLosses(NamedTuple):
    """Nats of each held-out code."""

    over_all: Float64[np.ndarray, "n p"]
    per_position: Float64[np.ndarray, "n p"]


def code_table(rows: TokenRows | Sequence[Mapping[str, Any]]) -> Int[np.ndarray, "n c"]:
    """The codes of all rows, semantic before guide."""
    return np.stack(
        [np.concatenate([np.asarray(rows[index][name], np.int32) for name in CODES]) for index in range(len(rows))]
    )


def code_groups(vocabulary: HybridVocabulary) -> list[tuple[str, slice, int]]:
    """Name, columns of `code_table` and codebook size of the semantic codes and of each grid."""
    groups = [("semantic", slice(0, NUM_SEMANTIC_TOKENS), vocabulary.semantic_codebook_size)]
    start = NUM_SEMANTIC_TOKENS
    for height, width in vocabulary.grid_shapes:
        columns = slice(start, start + height * width)
        groups.append((f"guide_{height}x{width}", columns, vocabulary.guide_codebook_size))
        start = columns.stop
    return groups


def unigram_losses(
    training: Int[np.ndarray, "m p"], held_out: Int[np.ndarray, "n p"], codebook_size: int
) -> UnigramLosses:
    """Losses of held-out codes under the training codes' frequencies. Columns are positions that share a codebook."""
    total = np.bincount(training.ravel(), minlength=codebook_size).astype(np.float64)
    over_all = [(total + added) / (total.sum() + added * codebook_size) for added in ADDED]
    best = min(over_all, key=lambda shares: -np.log(shares[held_out]).mean())
    counts = np.stack(
        [
            np.bincount(training[:, position], minlength=codebook_size)[held_out[:, position]]
            for position in range(training.shape[1])
        ],
        axis=1,
    )
    per_position = [(counts + weight * best[held_out]) / (len(training) + weight) for weight in BACKED_OFF]
    return UnigramLosses(-np.log(best[held_out]), min((-np.log(shares) for shares in per_position), key=np.mean))


def text_unigram_loss(training: Sequence[Sequence[int]], held_out: Sequence[int], vocabulary_size: int) -> float:
    """Nats per held-out text id under the frequencies of the training ids."""
    total = np.bincount(np.concatenate([np.asarray(ids, np.int64) for ids in training]), minlength=vocabulary_size)
    shares = [(total + added) / (total.sum() + added * vocabulary_size) for added in ADDED]
    return min(float(-np.log(share[np.asarray(held_out)]).mean()) for share in shares)
