"""Means over images and bootstrap intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
SEED = 0
VALUES_AT_ONCE = 2**16
"""Chunk size that bounds the bootstrap's memory for any number of images."""


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


def bootstrap_interval(
    values: Float[np.ndarray, "n"], level: float = 0.95, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:
    """Percentile bootstrap interval of the mean over images. None for fewer than two images.

    For a difference between two methods, pass the differences per image: the interval is then the paired one.
    """
    if len(values) < 2:
        return None
    from scipy.stats import bootstrap  # imported here because it takes a second, and few commands need it

    found = bootstrap(
        (np.asarray(values, dtype=np.float64),), np.mean, vectorized=True, method="percentile", confidence_level=level,
        n_resamples=resamples, batch=max(1, VALUES_AT_ONCE // len(values)), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(float(found.low), float(found.high))
