"""Means over images and bootstrap intervals."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 1000
SEED = 0


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


class MeanOverImages:
    """Sum and count of one value an image in float64: never a mean of batch means. Non-finite values are counted apart."""

    def __init__(self) -> None:
        self.total, self.count, self.left_out = 0.0, 0, 0

    def update(self, values: Float[Tensor, "b"]) -> None:
        """Add the values of a batch."""
        finite = values.double()[values.isfinite()]
        self.total += finite.sum().item()
        self.count += len(finite)
        self.left_out += len(values) - len(finite)

    def compute(self) -> float:
        """Mean of the finite values; NaN when there is none."""
        return self.total / self.count if self.count else math.nan


def bootstrap_interval(
    values: Float[np.ndarray, "n"], level: float = 0.95, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:
    """Percentile interval of the mean over images, which are resampled with replacement. None under two images.

    For a difference between two methods pass the per-image differences: that is the paired interval.
    """
    if len(values) < 2:
        return None
    draws = np.random.default_rng(seed)
    values = np.asarray(values, dtype=np.float64)
    # one resample at a time: memory stays at n however many images there are
    means = [values[draws.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
