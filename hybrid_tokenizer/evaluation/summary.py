"""From values per image to a row of a table: means over images, intervals and paired differences."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from hybrid_tokenizer.evaluation.measures import Measure
from hybrid_tokenizer.evaluation.tables import Column
from hybrid_tokenizer.metrics.statistics import bootstrap_interval

COST = (
    Column("num_tokens", "tokens", ".0f"),
    Column("bits", "bits", ".0f"),
    Column("render_size", "drawn at, px", ".0f"),
    Column("seconds_per_image", "s/image", ".3f"),
    Column("n", "n", ".0f"),
)
"""The columns of what a row costs, and of how many images."""


class Evaluation(NamedTuple):
    """A row of the table, the values it was averaged from, and the first few decoded images."""

    row: dict[str, Any]
    per_image: list[dict[str, Any]]
    """Per image: each measure's mean over seeds (None where it is not finite), the PSNR of each seed, tokens, bits, seconds."""
    pictures: UInt8[Tensor, "k 3 r r"]
    """Of the first seed."""


def summarize(
    name: str,
    size: int,
    measures: Sequence[Measure],
    values: dict[str, Float[np.ndarray, "s n"]],
    facts: dict[str, Float[np.ndarray, "s n"]],
) -> dict[str, Any]:
    """The row. Seeds are averaged per image, then images; intervals are over images, `psnr_std` is over seeds.

    size: the side of the images that were measured.
    """
    row: dict[str, Any] = {"method": name}
    intervals: dict[str, list[float] | None] = {}
    for measure in measures:
        if measure.name not in values:
            row[measure.name] = intervals[measure.name] = None
            row[f"{measure.name}_note"] = f"needs images of at least {measure.least_side} pixels, these have {size}"
            continue
        of_image = seed_mean(values[measure.name], measure)
        finite = of_image[np.isfinite(of_image)]
        row[measure.name], intervals[measure.name] = mean_and_interval(finite, measure)
        if len(finite) < len(of_image):
            what = "infinite (equal to the original)" if np.isposinf(of_image).any() else "undefined"
            left_out = len(of_image) - len(finite)
            row[f"{measure.name}_note"] = f"{what} for {left_out} of {len(of_image)} images, which the mean leaves out"
    if "psnr" in values:
        row["psnr_std"] = _spread(values["psnr"])
    for fact in ("num_tokens", "bits"):
        row[fact] = float(facts[fact].mean())
    row["bits_per_pixel"] = row["bits"] / size**2
    row["seconds_per_image"] = float(facts["seconds"].mean())
    return row | {"n": facts["bits"].shape[1], "image_size": size, "intervals": intervals}


def seed_mean(values: Float[np.ndarray, "s n"], measure: Measure) -> Float[np.ndarray, "n"]:
    """One value per image: the mean over seeds."""
    return np.exp(np.log(values).mean(0)) if measure.geometric else values.mean(0)


def mean_and_interval(values: Float[np.ndarray, "n"], measure: Measure) -> tuple[float | None, list[float] | None]:
    """Mean over images and its 95 % bootstrap interval; None for no values."""
    if not len(values):
        return None, None
    scaled = np.log(values) if measure.geometric else values
    back = math.exp if measure.geometric else float
    interval = bootstrap_interval(scaled)
    return back(scaled.mean()), None if interval is None else [back(interval.low), back(interval.high)]


def _spread(psnr: Float[np.ndarray, "s n"]) -> float | None:
    """Standard deviation over seeds of the mean PSNR; None for one seed or infinite values."""
    means = psnr.mean(1)
    return float(means.std(ddof=1)) if len(means) > 1 and np.isfinite(means).all() else None


def list_per_image(
    method: str,
    names: Sequence[str],
    measures: Sequence[Measure],
    values: dict[str, Float[np.ndarray, "s n"]],
    facts: dict[str, Float[np.ndarray, "s n"]],
) -> list[dict[str, Any]]:
    """`Evaluation.per_image`."""
    columns = {measure.name: seed_mean(values[measure.name], measure) for measure in measures}
    columns |= {fact: table.mean(0) for fact, table in facts.items()}
    entries = []
    for i, name in enumerate(names):
        entry: dict[str, Any] = {"method": method, "image": name} | {
            key: _finite(column[i]) for key, column in columns.items()
        }
        if "psnr" in values:
            entry["psnr_of_seeds"] = [_finite(value) for value in values["psnr"][:, i]]
        entries.append(entry)
    return entries


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def paired_differences(
    evaluation: Evaluation, reference: Evaluation, measures: Sequence[Measure]
) -> dict[str, dict[str, Any]]:
    """`evaluation` minus `reference` over the same images: metric -> mean and 95 % bootstrap interval.

    Images where either value is not finite are left out. Geometric measures, which are ratios, have no differences.
    """
    differences = {}
    for name in (measure.name for measure in measures if not measure.geometric):
        pairs = [
            (ours.get(name), theirs.get(name))
            for ours, theirs in zip(evaluation.per_image, reference.per_image, strict=True)
        ]
        values = np.array([ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None])
        if len(values):
            interval = bootstrap_interval(values)
            differences[name] = {
                "mean": float(values.mean()),
                "interval": None if interval is None else list(interval),
                "n": len(values),
            }
    return differences
