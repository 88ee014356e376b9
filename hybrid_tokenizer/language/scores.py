"""How well a language model predicts held-out tokens: loss and top-1 accuracy per token, under constrained decoding.

Each token is scored among the ids that constrained decoding allows at its kind: semantic codes among semantic codes, guide
codes among guide codes. This is the distribution that images are sampled from. The loss of training is over the whole
vocabulary and therefore a little higher.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import nn

from hybrid_tokenizer.language.documents import SEMANTIC, Document, kind_names, kind_range
from hybrid_tokenizer.language.packing import NOTHING, Packed, pack, packed_logits
from hybrid_tokenizer.tokens import HybridVocabulary

FIRST_SEMANTIC = 4
"""Accuracy is also told of this many semantic tokens at the start of an image, where the caption alone can help."""


class TokenScores(NamedTuple):
    """One entry per token that was predicted."""

    losses: Float64[np.ndarray, "t"]
    """Nats."""
    hits: Int[np.ndarray, "t"]
    """1 where the likeliest id is the token."""
    kinds: Int[np.ndarray, "t"]
    places: Int[np.ndarray, "t"]
    """Position within the document."""
    documents: Int[np.ndarray, "t"]
    """Index of the document."""

    def of(self, chosen: np.ndarray) -> "TokenScores":
        """Entries by mask or index."""
        return TokenScores(*(values[chosen] for values in self))


@torch.no_grad()
def score_documents(
    model: nn.Module,
    documents: Sequence[Document],
    vocabulary: HybridVocabulary,
    row_length: int,
    batch_size: int = 8,
) -> TokenScores:
    """Scores of every token but the first of each document, document by document."""
    parts = []
    for start, batch in _batches(documents, batch_size):
        packed = pack(batch, row_length).to(model.device)
        scored = _score_packed(model, packed, vocabulary)
        parts.append(scored._replace(documents=scored.documents + start))
    scores = TokenScores(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    return scores.of(np.lexsort((scores.places, scores.documents)))


def _batches(documents: Sequence[Document], size: int) -> Iterator[tuple[int, Sequence[Document]]]:
    for start in range(0, len(documents), size):
        yield start, documents[start : start + size]


def _score_packed(model: nn.Module, packed: Packed, vocabulary: HybridVocabulary) -> TokenScores:
    has_target = packed.targets != NOTHING
    logits = packed_logits(model, packed)
    targets, kinds = packed.targets[has_target], packed.kinds[has_target]
    losses, hits = (torch.zeros(len(targets), device=logits.device) for _ in range(2))
    for kind in kinds.unique().tolist():
        chosen = kinds == kind
        low, high = kind_range(kind, vocabulary)
        allowed = logits[chosen, low:high]
        wanted = targets[chosen] - low
        losses[chosen] = torch.nn.functional.cross_entropy(allowed, wanted, reduction="none")
        hits[chosen] = (allowed.argmax(1) == wanted).float()
    places, owners = (packed.position_ids[has_target] + 1, packed.documents[has_target])
    numbers = (values.cpu().numpy() for values in (hits.long(), kinds, places, owners))
    return TokenScores(losses.double().cpu().numpy(), *numbers)


def first_semantic(scores: TokenScores) -> np.ndarray:
    """Mask of the first semantic tokens of each image."""
    starts: dict[int, int] = {}
    semantic = scores.kinds == SEMANTIC
    for document, place in zip(scores.documents[semantic], scores.places[semantic], strict=True):
        starts[document] = min(place, starts.get(document, place))
    begin = np.array([starts.get(document, -1) for document in scores.documents], dtype=np.int64)
    return semantic & (scores.places < begin + FIRST_SEMANTIC)


def summarize_kinds(scores: TokenScores, vocabulary: HybridVocabulary) -> dict[str, float]:
    """`loss_KIND` in nats per token and `perplexity_KIND`, and the accuracy of semantic tokens."""
    figures: dict[str, float] = {}
    for kind, name in enumerate(kind_names(vocabulary)):
        chosen = scores.kinds == kind
        if chosen.any():
            loss = float(scores.losses[chosen].mean())
            figures |= {f"loss_{name}": loss, f"perplexity_{name}": math.exp(loss)}
    if (scores.kinds == SEMANTIC).any():
        figures["accuracy_semantic"] = float(scores.hits[scores.kinds == SEMANTIC].mean())
        figures["accuracy_first_semantic"] = float(scores.hits[first_semantic(scores)].mean())
    return figures
