import math

import numpy as np
import pytest
import torch

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.metrics import statistics
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.metrics.statistics import bootstrap_interval


def test_codebook_use_of_known_counts():
    use = CodebookUse(8)
    use.update(torch.tensor([[0, 1], [2, 3]]))
    use.update(torch.tensor([0, 1, 2, 3]))
    assert use.compute() == {
        "codebook_usage": 0.5, "perplexity": pytest.approx(4), "index_entropy": pytest.approx(2), "dead_codes": 4,
    }  # fmt: skip


def test_codebook_use_counts_the_set_not_the_batches():
    indices = torch.randint(0, 16, (6, 5, 3), generator=torch.Generator().manual_seed(0))
    whole, parts = CodebookUse(16), CodebookUse(16)
    whole.update(indices)
    for part in indices.split(2):
        parts.update(part)
    assert whole.compute() == parts.compute()


def test_codebook_use_refuses_token_ids():
    with pytest.raises(HybridTokenizerError, match="expected 0 to 7"):
        CodebookUse(8).update(torch.tensor([8]))


def test_bootstrap_interval_matches_the_normal_one():
    values = np.random.default_rng(1).normal(20.0, 3.5, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.06)
    assert high == pytest.approx(values.mean() + half, abs=0.06)
    assert bootstrap_interval(values) == (low, high)


def test_bootstrap_interval_equals_plain_resampling_in_batches_of_any_size(monkeypatch):
    values = np.random.default_rng(3).normal(20.0, 3.5, 24)
    draws = np.random.default_rng(statistics.SEED)
    means = [values[draws.integers(0, 24, 24)].mean() for _ in range(statistics.RESAMPLES)]
    expected = pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-14)
    for at_once in (1, 24 * 7, statistics.VALUES_AT_ONCE):
        monkeypatch.setattr(statistics, "VALUES_AT_ONCE", at_once)
        assert tuple(bootstrap_interval(values)) == expected


def test_paired_interval_is_narrower():
    draws = np.random.default_rng(2)
    first = draws.normal(20.0, 3.5, 50)
    second = first + draws.normal(0.5, 0.2, 50)
    low, high = bootstrap_interval(second - first)
    assert 0.3 < low < 0.5 < high < 0.7


def test_bootstrap_of_one_image_says_nothing():
    assert bootstrap_interval(np.array([3.0])) is None
