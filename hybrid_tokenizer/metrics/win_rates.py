"""From scores of several methods on the same images to who wins: pairwise win rates and shares that add up to 1.

A score may be compared between methods on one image, where the caption is the same, and hardly between images. Every
function gives a value a method and image, so that means and bootstrap intervals over images follow.
"""

import numpy as np
from jaxtyping import Float


def win_rates(scores: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """For each method and image the share of the other methods whose score on that image is lower; a tie is half a win.

    The mean over methods is 1/2 on every image. NaN for a single method.
    """
    ours, theirs = scores[:, None], scores[None]
    wins = (ours > theirs) + 0.5 * (ours == theirs)
    others = len(scores) - 1
    if not others:
        return np.full(scores.shape, np.nan)
    return (wins.sum(1) - 0.5) / others  # every method ties with itself


def best_shares(scores: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """1 for the method with the best score on an image, split evenly between ties; adds up to 1 over methods."""
    best = scores == scores.max(0, keepdims=True)
    return best / best.sum(0, keepdims=True)


def softmax_shares(scores: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """The probability with which PickScore's model prefers each method's image: softmax over methods of its scores."""
    powers = np.exp(scores - scores.max(0, keepdims=True))
    return powers / powers.sum(0, keepdims=True)
