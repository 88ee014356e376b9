"""How far raters agree: Krippendorff's alpha."""

import numpy as np
from jaxtyping import Float

from hybrid_tokenizer.errors import HybridTokenizerError

SCALES = ("ordinal", "interval")


def krippendorff_alpha(ratings: Float[np.ndarray, "raters units"], scale: str = "ordinal") -> float | None:
    """1 is agreement, 0 what chance gives, negative is worse; NaN is a rating that was not given.

    scale: "ordinal" reads the order of the values alone, "interval" their differences. None where no unit has two ratings,
    or all ratings are equal: then there is nothing to tell agreement from.
    """
    if scale not in SCALES:
        raise HybridTokenizerError(f"scale is {scale!r}, expected one of {', '.join(SCALES)}; correct the name")
    values = np.unique(ratings[np.isfinite(ratings)])
    counts = (ratings.T[:, :, None] == values).sum(1)  # units x values; NaN equals nothing
    paired = counts[counts.sum(1) >= 2].astype(np.float64)
    if not len(paired):
        return None
    # within a unit every pair of two raters' values counts, by 1 / (its ratings - 1), so that a unit weighs its ratings
    weights = 1 / (paired.sum(1) - 1)
    coincidences = np.einsum("uc,uk,u->ck", paired, paired, weights) - np.diag(weights @ paired)
    totals = coincidences.sum(1)
    distances = _squared_distances(values, totals, scale)
    expected = totals @ distances @ totals / (totals.sum() - 1)
    if expected == 0:
        return None
    return float(1 - (coincidences * distances).sum() / expected)


def _squared_distances(
    values: Float[np.ndarray, "v"], totals: Float[np.ndarray, "v"], scale: str
) -> Float[np.ndarray, "v v"]:
    """Between any two values. Ordinal: how many ratings lie from one to the other, both ends counted by half."""
    positions = values if scale == "interval" else np.cumsum(totals) - totals / 2
    return np.subtract.outer(positions, positions) ** 2
