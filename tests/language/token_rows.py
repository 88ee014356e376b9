"""Rows as token shards hold them, in memory, and a tokenizer and vocabulary for them."""

import numpy as np
import torch
from language_models import SMALL
from text_tokenizers import CAPTIONS, byte_level

from hybrid_tokenizer.language.vocabulary import add_image_tokens


def text_side():
    """(tokenizer, vocabulary) on a byte-level BPE of 300 ids at most."""
    tokenizer = byte_level()
    return tokenizer, add_image_tokens(tokenizer, SMALL)


class MemoryRows(list):
    """Token shards in memory."""

    def __init__(self, rows, vocabulary=SMALL):
        super().__init__(rows)
        self.grid_shapes, self.image_size, self.source = (
            vocabulary.grid_shapes,
            vocabulary.image_size,
            vocabulary.source,
        )


def token_rows(count, seed=0, captions=2, vocabulary=SMALL):
    """Rows whose codes follow from their caption's number, so that a model can learn something."""
    rng = np.random.default_rng(seed)
    rows = []
    guide_length = sum(h * w for h, w in vocabulary.grid_shapes)
    for index in range(count):
        topic = index % len(CAPTIONS)
        texts = [CAPTIONS[topic], f"{CAPTIONS[topic]} today"][:captions]
        semantic = (3 * topic + rng.integers(0, 3, 32)) % vocabulary.semantic_codebook_size
        guide = (7 * topic + rng.integers(0, 5, guide_length)) % vocabulary.guide_codebook_size
        rows.append(
            {"id": f"{index}.png", "captions": texts, "semantic": torch.tensor(semantic), "guide": torch.tensor(guide)}
        )
    return MemoryRows(rows, vocabulary)
