"""Constrained decoding: a transformers LogitsProcessor under which a language model writes whole images only."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.vocabulary import budgets
from hybrid_tokenizer.tokens import NUM_SEMANTIC_TOKENS, HybridVocabulary

OUTSIDE = -1


class ImageGrammar(LogitsProcessor):
    """Masks what cannot come next; the logits of what can come stay as they are.

    After `<img>` come 32 semantic ids, then the guide ids of the budget, then `</img>`. Elsewhere come text ids, and
    `<img>` while another whole image is allowed. The state is read from the ids, so batches, beams, sampling and prompts
    that hold part of an image need nothing else. transformers applies it after classifier-free guidance and before
    temperature, top-k and top-p.

    Args:
        budget: tokens per image (36, 52, 116 or 372 for the embedded preset), or one such number per prompt.
        max_images: images per sequence, those of the prompt included.
        max_length: length at which generation stops; no image begins that would not end before it.
    """

    def __init__(
        self,
        vocabulary: HybridVocabulary,
        budget: int | Sequence[int],
        max_images: int = 1,
        max_length: int | None = None,
    ):
        if vocabulary.text_vocab_size < 1:
            raise HybridTokenizerError(
                "text_vocab_size=0 leaves nothing to write after an image; give the vocabulary that add_image_tokens returned"
            )
        self.vocabulary, self.max_images, self.max_length = vocabulary, max_images, max_length
        self.budgets = [budget] if isinstance(budget, int) else list(budget)
        for total in self.budgets:
            if total not in budgets(vocabulary):
                raise HybridTokenizerError(
                    f"budget={total} is no number of tokens of an image; use one of {budgets(vocabulary)}"
                )

    def __call__(self, input_ids: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        totals = self._totals(input_ids)
        places = places_in_image(input_ids, self.vocabulary)
        self._check(input_ids, places, totals)
        low, high = self._next_range(input_ids, places, totals)
        ids = torch.arange(scores.shape[1], device=scores.device)
        return scores.masked_fill((ids < low[:, None]) | (ids >= high[:, None]), -torch.inf)

    def _totals(self, input_ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        """The budget of each row; the rows of one prompt (beams, samples) follow each other."""
        rows, prompts = len(input_ids), len(self.budgets)
        if rows % prompts:
            raise HybridTokenizerError(f"{prompts} budgets for {rows} sequences; give one number, or one per prompt")
        return torch.tensor(self.budgets, device=input_ids.device).repeat_interleave(rows // prompts)

    def _next_range(
        self, input_ids: Int[Tensor, "b n"], places: Int[Tensor, "b"], totals: Int[Tensor, "b"]
    ) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"]]:
        """The lowest id that may come next, and the one after the highest: allowed ids are always neighbours."""
        vocabulary = self.vocabulary
        begun = (input_ids == vocabulary.begin_id).sum(1)
        may_begin = begun < self.max_images
        if self.max_length is not None:
            may_begin &= input_ids.shape[1] + totals + 2 <= self.max_length
        outside, semantic, guide = places == OUTSIDE, places < NUM_SEMANTIC_TOKENS, places < totals
        low = torch.where(guide, vocabulary.guide_offset, vocabulary.end_id)
        high = torch.where(guide, vocabulary.size, vocabulary.end_id + 1)
        low = torch.where(semantic, vocabulary.semantic_offset, low)
        high = torch.where(semantic, vocabulary.guide_offset, high)
        low = torch.where(outside, 0, low)
        high = torch.where(outside, vocabulary.begin_id + may_begin.long(), high)  # <img> follows the last text id
        return low, high

    def _check(self, input_ids: Int[Tensor, "b n"], places: Int[Tensor, "b"], totals: Int[Tensor, "b"]) -> None:
        """Raise when an image that a prompt begins is not the beginning of one."""
        # position of each id in the open image, 0 for the first semantic id; negative before it and in closed images
        position = torch.arange(input_ids.shape[1], device=input_ids.device) - (input_ids.shape[1] - places)[:, None]
        position = torch.where(places[:, None] == OUTSIDE, OUTSIDE, position)
        vocabulary = self.vocabulary
        semantic = (input_ids >= vocabulary.semantic_offset) & (input_ids < vocabulary.guide_offset)
        guide = (input_ids >= vocabulary.guide_offset) & (input_ids < vocabulary.size)
        right = torch.where(position < NUM_SEMANTIC_TOKENS, semantic, guide & (position < totals[:, None]))
        wrong = ((position >= 0) & ~right).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            place = position[row, column].item()
            what = "a semantic id" if place < NUM_SEMANTIC_TOKENS else "a guide id"
            expected = what if place < totals[row] else f"at most the {totals[row].item()} ids of its budget"
            raise HybridTokenizerError(
                f"the image of prompt {row} has id {input_ids[row, column].item()} as its token {place}, expected {expected}; "
                "give <img>, 32 semantic ids, then guide ids, and a budget that holds them"
            )


def places_in_image(input_ids: Int[Tensor, "b n"], vocabulary: HybridVocabulary) -> Int[Tensor, "b"]:
    """How many ids of an open image each sequence ends with, `<img>` not counted; OUTSIDE where none is open."""
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    begin = torch.where(input_ids == vocabulary.begin_id, columns, -1).amax(1)
    end = torch.where(input_ids == vocabulary.end_id, columns, -1).amax(1)
    return torch.where(begin > end, input_ids.shape[1] - 1 - begin, OUTSIDE)
