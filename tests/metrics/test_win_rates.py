"""Win rates and shares in closed form."""

import numpy as np
import pytest

from hybrid_tokenizer.metrics.win_rates import best_shares, softmax_shares, win_rates

SCORES = np.array([[3.0, 1.0, 2.0], [2.0, 1.0, 5.0], [1.0, 1.0, 2.0]])  # three methods, three images


def test_win_rates_count_comparisons_on_one_image_and_ties_half():
    expected = [[1.0, 0.5, 0.25], [0.5, 0.5, 1.0], [0.0, 0.5, 0.25]]
    np.testing.assert_allclose(win_rates(SCORES), expected)
    np.testing.assert_allclose(win_rates(np.random.default_rng(0).normal(size=(5, 7))).mean(0), 0.5)
    np.testing.assert_allclose(win_rates(np.exp(SCORES)), expected)  # only the order counts
    assert np.isnan(win_rates(SCORES[:1])).all()


def test_shares_add_up_to_one():
    np.testing.assert_allclose(best_shares(SCORES), [[1, 1 / 3, 0], [0, 1 / 3, 1], [0, 1 / 3, 0]])
    shares = softmax_shares(SCORES)
    np.testing.assert_allclose(shares.sum(0), 1)
    assert shares[0, 0] == pytest.approx(np.e**2 / (np.e**2 + np.e + 1))
    np.testing.assert_allclose(softmax_shares(SCORES + 1000), shares)
