"""From votes to average scores, pairwise win rates and agreement. Pure functions of one array of points."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from hybrid_tokenizer.apps.user_study.study import Study
from hybrid_tokenizer.apps.user_study.votes import Vote
from hybrid_tokenizer.evaluation.published import TABLE_4
from hybrid_tokenizer.metrics.agreement import krippendorff_alpha
from hybrid_tokenizer.metrics.statistics import Interval, bootstrap_interval

AGREEMENT_SCALE = "ordinal"  # places are an order; second place need not be midway between first and third


def points_of(study: Study, votes: Sequence[Vote]) -> Float[np.ndarray, "participants sets methods"]:
    """With k methods, first place is k points and k-th place is 1 point. NaN is a missing vote. Only participants with a vote."""
    codes = sorted({vote.code for vote in votes})
    points = np.full((len(codes), len(study.sets), len(study.methods)), np.nan)
    numbers = {one.id: number for number, one in enumerate(study.sets)}
    for vote in votes:
        candidates = study.sets[numbers[vote.set_id]].candidates
        places = [vote.places[candidates[method]] for method in study.methods]
        points[codes.index(vote.code), numbers[vote.set_id]] = len(study.methods) + 1 - np.array(places)
    return points


def score_rows(methods: Sequence[str], points: Float[np.ndarray, "participants sets methods"]) -> list[dict[str, Any]]:
    """One row per method.

    `score` is the mean over sets of the mean over participants in each set, with intervals over sets and over
    participants. `first` is the share of votes with the method in first place, shared or not.
    """
    rows = []
    for number, method in enumerate(methods):
        given = points[:, :, number]
        of_sets = mean_of_rows(given.T)
        rows.append(
            {
                "method": method,
                "score": float(of_sets.mean()),
                "interval_over_sets": as_list(bootstrap_interval(of_sets)),
                "interval_over_participants": as_list(bootstrap_interval(mean_of_rows(given))),
                "first": float((given[np.isfinite(given)] == len(methods)).mean()),
                "published_score": TABLE_4.get(method),
            }
        )
    return rows


def win_rates(methods: Sequence[str], points: Float[np.ndarray, "participants sets methods"]) -> list[dict[str, Any]]:
    """One row per pair: the share of votes that rank `method` before `other`, averaged as scores are. A tie is half a win."""
    pairs = []
    for a, method in enumerate(methods):
        for b, other in enumerate(methods):
            if a == b:
                continue
            difference = points[:, :, a] - points[:, :, b]
            of_sets = mean_of_rows((np.sign(difference).T + 1) / 2)
            given = difference[np.isfinite(difference)]
            pairs.append(
                {
                    "method": method,
                    "other": other,
                    "win_rate": float(of_sets.mean()),
                    "interval_over_sets": as_list(bootstrap_interval(of_sets)),
                    "wins": int((given > 0).sum()),
                    "ties": int((given == 0).sum()),
                    "losses": int((given < 0).sum()),
                }
            )
    return pairs


def agreement(points: Float[np.ndarray, "participants sets methods"]) -> dict[str, Any]:
    """Krippendorff's alpha over all images that were ranked."""
    return {"alpha": krippendorff_alpha(points.reshape(len(points), -1), AGREEMENT_SCALE), "scale": AGREEMENT_SCALE}


def position_scores(votes: Sequence[Vote]) -> list[float]:
    """The mean score of each position on the page, from the left. The scores are equal if the order had no influence."""
    scores = np.array([[len(vote.shown) + 1 - vote.places[name] for name in vote.shown] for vote in votes])
    return [float(score) for score in scores.mean(0)]


def mean_of_rows(values: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rated"]:
    """The mean of the finite values of each row. Rows without finite values are left out."""
    rated = values[np.isfinite(values).any(1)]
    return np.nanmean(rated, axis=1)


def as_list(interval: Interval | None) -> list[float] | None:
    """For JSON, which has no tuples."""
    return None if interval is None else list(interval)
