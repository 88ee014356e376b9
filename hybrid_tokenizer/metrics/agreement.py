"""Agreement between raters: Krippendorff's alpha, computed by the package `krippendorff`."""

import krippendorff
import numpy as np
from jaxtyping import Float

from hybrid_tokenizer.errors import HybridTokenizerError

SCALES = ("ordinal", "interval")


def krippendorff_alpha(ratings: Float[np.ndarray, "raters units"], scale: str = "ordinal") -> float | None:
    """Krippendorff's alpha: 1 is perfect agreement, 0 is chance, negative is worse than chance. NaN is a missing rating.

    scale: "ordinal" uses the order of the values, "interval" uses their differences. None if alpha is undefined: no unit
    has two ratings, or all ratings that can be paired are equal.
    """
    if scale not in SCALES:
        raise HybridTokenizerError(f"scale is {scale!r}, expected one of {', '.join(SCALES)}; correct the name")
    paired = ratings[:, np.isfinite(ratings).sum(0) >= 2]
    if len(np.unique(paired[np.isfinite(paired)])) < 2:
        return None
    return float(krippendorff.alpha(paired, level_of_measurement=scale))
