"""Krippendorff's alpha against values computed by hand."""

import numpy as np
import pytest

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.metrics.agreement import krippendorff_alpha

X = np.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units, gaps
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, X, X, X],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, X, 3],
        [X, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, X],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, X],
    ]
)


@pytest.mark.parametrize(("scale", "alpha"), [("ordinal", 0.815), ("interval", 0.849)])
def test_published_example(scale, alpha):
    assert krippendorff_alpha(PUBLISHED, scale) == pytest.approx(alpha, abs=5e-4)


def test_two_raters_by_hand():
    # pairs (1,1) (2,3) (3,3): coincidences 11: 2, 23 and 32: 1 each, 33: 2; totals n = 2, 1, 3 of 6.
    # interval: observed 2 * 1; expected 2 * (2*1*1 + 2*3*4 + 1*3*1) / 5 = 58/5; alpha = 1 - 2 * 5/58
    ratings = np.array([[1.0, 2, 3], [1, 3, 3]])
    assert krippendorff_alpha(ratings, "interval") == pytest.approx(1 - 10 / 58)
    # ordinal distances: 12: (2+1 - 3/2)^2 = 9/4; 23: (1+3 - 4/2)^2 = 4; 13: (2+1+3 - 5/2)^2 = 49/4
    # observed 2 * 4; expected 2 * (2*1*9/4 + 1*3*4 + 2*3*49/4) / 5 = 36
    assert krippendorff_alpha(ratings, "ordinal") == pytest.approx(1 - 8 / 36)


def test_agreement_chance_and_nothing():
    agreed = np.tile([3.0, 2, 1, 1, 2, 3], (4, 1))
    assert krippendorff_alpha(agreed) == pytest.approx(1)
    random = np.random.default_rng(0).integers(1, 4, (15, 400)).astype(float)
    assert abs(krippendorff_alpha(random)) < 0.02
    assert krippendorff_alpha(np.array([[1.0, X], [X, 2.0]])) is None  # no unit has two ratings
    assert krippendorff_alpha(np.ones((3, 5))) is None
    assert krippendorff_alpha(np.array([[1.0, 1, X], [1, 1, 2]])) is None  # the 2 has nothing to be compared with


def test_unknown_scale():
    with pytest.raises(HybridTokenizerError, match="ordinal, interval"):
        krippendorff_alpha(PUBLISHED, "nominal")
