"""Medians of interleaved repeats, so that other load on the machine affects both sides equally."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Contest:
    """Two ways to the same result.

    Args:
        ours, alternative: run once and return the result, which `difference` compares.
        amount: images or steps in one run, for a rate. 0 measures the seconds of a run instead.
        difference: largest difference between the two results, in the results' own unit.
        notes: what each side is, and other facts for the row.
    """

    name: str
    unit: str
    ours: Callable[[], Any]
    alternative: Callable[[], Any]
    amount: int
    difference: Callable[[Any, Any], float | None]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Timed:
    """A result that brings its own duration, for runs whose start-up and end do not count."""

    seconds: float
    result: Any


def measure(contest: Contest, repeats: int, device: torch.device, warm_up: int = 0) -> dict[str, Any]:
    """The row of a contest. A `ratio` above 1 means that ours is faster, whatever the unit.

    The order within a pair alternates, so that neither side always profits from the cache or clock that the other left.
    """
    sides = {"ours": contest.ours, "alternative": contest.alternative}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, Any] = {}
    for repeat in range(-warm_up, repeats):
        for side in sorted(sides, reverse=repeat % 2 == 0):
            taken, results[side] = _run(sides[side], device)
            if repeat >= 0:
                seconds[side].append(taken)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    values = {side: contest.amount / median if contest.amount else median for side, median in medians.items()}
    return {
        "name": contest.name,
        "ours": values["ours"],
        "alternative": values["alternative"],
        "unit": contest.unit,
        "ratio": medians["alternative"] / medians["ours"],
        "max_output_difference": contest.difference(results["ours"], results["alternative"]),
        "repeats": repeats,
        "seconds_ours": seconds["ours"],
        "seconds_alternative": seconds["alternative"],
        **contest.notes,
    }


def _run(side: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    _wait(device)
    start = time.perf_counter()
    result = side()
    _wait(device)
    seconds = time.perf_counter() - start
    return (result.seconds, result.result) if isinstance(result, Timed) else (seconds, result)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
