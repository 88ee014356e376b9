"""Documents side by side in the rows of a batch, and the loss per kind of token."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.documents import Document
from hybrid_tokenizer.language.llama import FactorisedLlamaForCausalLM

NOTHING = -100
"""Target of the last token of a document, and of padding."""


class Packed(NamedTuple):
    """Several documents per row. Positions start at 0 in each document: transformers reads from them, when it gets no
    attention mask and no cache, which tokens may attend to each other."""

    input_ids: Int[Tensor, "b n"]
    position_ids: Int[Tensor, "b n"]
    targets: Int[Tensor, "b n"]
    kinds: Int[Tensor, "b n"]
    """Of the targets."""
    documents: Int[Tensor, "b n"]
    """Index of the document that a token is of; NOTHING for padding."""

    def to(self, device: torch.device | str) -> "Packed":
        """On another device."""
        return Packed(*(tensor.to(device) for tensor in self))


def first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which documents share a row: longest first, each into the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > row_length:
            raise HybridTokenizerError(
                f"a document has {lengths[index]} tokens, a row holds {row_length}; raise row_length, or lower "
                "documents.max_caption_tokens"
            )
        place = next((i for i, free in enumerate(room) if free >= lengths[index]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(row_length)
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


def pack(documents: Sequence[Document], row_length: int) -> Packed:
    """Rows of at most `row_length` tokens; the padding of a row is a document without targets."""
    rows = first_fit([len(document.ids) for document in documents], row_length)
    width = max(sum(len(documents[index].ids) for index in row) for row in rows)
    shape = len(rows), width
    input_ids, position_ids, kinds = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    targets, owners = (torch.full(shape, NOTHING) for _ in range(2))
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            ids, ids_kinds = (torch.from_numpy(part) for part in documents[index])
            end = start + len(ids)
            input_ids[number, start:end] = ids
            position_ids[number, start:end] = torch.arange(len(ids))
            targets[number, start : end - 1] = ids[1:]
            kinds[number, start : end - 1] = ids_kinds[1:]
            owners[number, start:end] = index
            start = end
        position_ids[number, start:] = torch.arange(width - start)
    return Packed(input_ids, position_ids, targets, kinds, owners)


def packed_logits(model: nn.Module, packed: Packed) -> Float[Tensor, "t v"]:
    """Logits at the positions that have a target, in fp32."""
    logits = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits
    return logits[packed.targets != NOTHING].float()


class KindLosses(NamedTuple):
    """Cross-entropy in nats, summed over the tokens of each kind, and how many there are."""

    sums: Float[Tensor, "k"]
    counts: Int[Tensor, "k"]

    def total(self, weights: Float[Tensor, "k"]) -> Float[Tensor, ""]:
        """Mean over all tokens, each weighted by its kind."""
        return (weights * self.sums).sum() / (weights * self.counts).sum().clamp(min=1e-12)


def kind_losses(model: nn.Module, packed: Packed, num_kinds: int) -> KindLosses:
    """Loss over the whole vocabulary, as training minimises it."""
    has_target = packed.targets != NOTHING
    if isinstance(model, FactorisedLlamaForCausalLM):
        losses = model.token_losses(packed.input_ids, packed.position_ids, packed.targets, NOTHING)
    else:
        losses = F.cross_entropy(packed_logits(model, packed), packed.targets[has_target], reduction="none")
    kinds = packed.kinds[has_target]
    sums = losses.new_zeros(num_kinds).index_add(0, kinds, losses)
    return KindLosses(sums, torch.bincount(kinds, minlength=num_kinds))
