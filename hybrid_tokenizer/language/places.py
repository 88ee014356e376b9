"""First values of a small model's places: tokens of neighbouring cells, and of one cell in several grids, start alike."""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.tokens import NUM_SEMANTIC_TOKENS, HybridVocabulary

FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waves over the height and the width of an image. The highest tells the even cells of a 16x16 grid from the odd ones."""


def num_places(vocabulary: HybridVocabulary) -> int:
    """Outside of an image, `<img>`, and one for each token of the largest budget."""
    return vocabulary.sequence_lengths[-1]


def place_vectors(vocabulary: HybridVocabulary, width: int, generator: torch.Generator) -> Float[Tensor, "p d"]:
    """Sines of a token's own cell and of the next token's, projected at random to a standard deviation of about 1.

    The own cell is what others look for, the next one what the token itself is about to predict. A model that starts from
    them need not find out first which tokens of a sequence are neighbours in the image.
    """
    shapes = [(NUM_SEMANTIC_TOKENS, 1), *vocabulary.grid_shapes]
    cells = torch.cat([_cells(kind, len(shapes), *shape) for kind, shape in enumerate(shapes)])
    nothing = torch.zeros(1, cells.shape[1])
    own, following = torch.cat([nothing, cells]), torch.cat([cells, nothing])  # from <img> to the last token
    features = torch.cat([own, following], dim=1)
    features = torch.cat([torch.zeros(1, features.shape[1]), features])  # outside
    projection = torch.randn(features.shape[1], width, generator=generator)
    return features @ projection / features.square().sum(1).mean().sqrt()


def _cells(kind: int, num_kinds: int, height: int, width: int) -> Float[Tensor, "c f"]:
    """Features of a grid's cells in raster order: which grid, and waves at the cells' centres."""
    rows = []
    for row, column in itertools.product(range(height), range(width)):
        centre = ((row + 0.5) / height, (column + 0.5) / width)
        angles = [2 * math.pi * frequency * at for at in centre for frequency in FREQUENCIES]
        waves = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
        rows.append([float(kind == other) for other in range(num_kinds)] + waves)
    return torch.tensor(rows)
