"""What the demo page's language model computes: the ids of a picture from a text, and a caption from ids."""

import time
from collections.abc import Sequence
from typing import Any

from hybrid_tokenizer.apps.demo.pictures import tokens_of_ids
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.language.config import SamplingConfig
from hybrid_tokenizer.language.generate import describe, draw
from hybrid_tokenizer.language.model import LanguageModel
from hybrid_tokenizer.language.vocabulary import budgets
from hybrid_tokenizer.tokens import HybridVocabulary


class DemoWriter:
    """A language model on the tokens of the page's tokenizer. Equal texts and seeds give equal ids.

    Args:
        vocabulary: the ids that the page shows; the model's own have other offsets.
    """

    def __init__(self, lm: LanguageModel, vocabulary: HybridVocabulary):
        if lm.vocabulary.grid_shapes != vocabulary.grid_shapes:
            raise HybridTokenizerError(
                f"the language model draws grids {lm.vocabulary.grid_shapes}, the page shows {vocabulary.grid_shapes}; use "
                "the model that was trained at this image size"
            )
        self.lm, self.vocabulary = lm, vocabulary

    def draw(self, text: str, seed: int) -> dict[str, Any]:
        """The ids of a whole picture, and the seconds that they took."""
        started = time.perf_counter()
        tokens = draw(self.lm, [text], budgets(self.lm.vocabulary)[-1], SamplingConfig(), seed)
        seconds = round(time.perf_counter() - started, 2)
        return {"seconds": seconds, "ids": tokens.to_token_ids(self.vocabulary)[0].tolist()}

    def caption(self, ids: Sequence[int]) -> dict[str, str]:
        """What the model says of a picture."""
        tokens = tokens_of_ids(ids, self.vocabulary)
        return {"caption": describe(self.lm, tokens, SamplingConfig(temperature=0.0))[0]}
