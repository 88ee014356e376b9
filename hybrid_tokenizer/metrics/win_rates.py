"""Preference statistics from the scores of several methods on the same images: win rates, and shares that sum to 1.

Scores are compared between methods on one image, where the caption is the same, and not between images. Every function
returns one value per method and image, from which means and bootstrap intervals are computed.
"""

import numpy as np
from jaxtyping import Float


def win_rates(scores: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Per method and image, the share of the other methods with a lower score on that image. A tie counts half.

    The mean over methods is 1/2 on every image. NaN for a single method.
    """
    ours, theirs = scores[:, None], scores[None]
    wins = (ours > theirs) + 0.5 * (ours == theirs)
    others = len(scores) - 1
    if not others:
        return np.full(scores.shape, np.nan)
    return (wins.sum(1) - 0.5) / others  # every method ties with itself


def best_shares(scores: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """1 for the method with the best score on an image, split evenly between ties. The sum over methods is 1."""
    best = scores == scores.max(0, keepdims=True)
    return best / best.sum(0, keepdims=True)


def softmax_shares(scores: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Probability that PickScore's model prefers each method's image: softmax of its scores over methods."""
    powers = np.exp(scores - scores.max(0, keepdims=True))
    return powers / powers.sum(0, keepdims=True)
