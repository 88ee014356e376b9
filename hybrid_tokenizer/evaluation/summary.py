"""Measures per image, and their summary: means, intervals and paired differences."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hybrid_tokenizer import perceptual
from hybrid_tokenizer.metrics import pixel, weighted
from hybrid_tokenizer.metrics.statistics import bootstrap_interval


@dataclass(frozen=True)
class Metric:
    """A measure of images against references, both in [-1, 1], a value an image.

    Args:
        geometric: its values are ratios, averaged by their logarithms.
        least_side: smaller images have no value.
    """

    name: str
    measure: Callable[[Tensor, Tensor], Tensor]
    geometric: bool = False
    least_side: int = 1


def default_metrics(device: torch.device | str = "cpu", weights: Mapping[str, str] | None = None) -> list[Metric]:
    """The measures of every table. `efficientnet-lite0` is a teacher of `tiny`, and its column says so.

    weights: of measures that need some, name -> file or folder; those of whole sets (rFID, KID) are `of_a_set`'s.
    """
    lite2, lite0 = (perceptual.EfficientNetDistance(name).to(device) for name in ("lite2", "lite0"))
    return [
        Metric("psnr", pixel.psnr),
        Metric("ssim", pixel.ssim),
        Metric("ms_ssim", pixel.ms_ssim, least_side=pixel.MS_SSIM_LEAST_SIDE),
        Metric("ssim_paper_compat", pixel.ssim_paper_compat),
        Metric("effnet_lite2_distance", lambda x, y: perceptual.efficientnet_distance(lite2, x, y)),
        Metric("haarpsi", perceptual.haarpsi),
        Metric("mdsi", perceptual.mdsi),
        Metric("high_frequency_energy", pixel.high_frequency_energy, geometric=True),
        Metric("effnet_lite0_distance (trained on)", lambda x, y: perceptual.efficientnet_distance(lite0, x, y)),
        *(Metric(name, measure) for name, measure in weighted.per_image(weights or {}, device).items()),
    ]


class Evaluation(NamedTuple):
    """A row of the table, what it was averaged from, and the first few reconstructions."""

    row: dict[str, Any]
    per_image: list[dict[str, Any]]
    """An entry an image: every measure's mean over seeds, PSNR of each seed, tokens, bits, seconds; null is not finite."""
    pictures: UInt8[Tensor, "k 3 r r"]
    """Of the first seed."""


def summarize(
    name: str,
    size: int,
    metrics: Sequence[Metric],
    values: dict[str, Float[np.ndarray, "s n"]],
    facts: dict[str, Float[np.ndarray, "s n"]],
) -> dict[str, Any]:
    """The row: means over images of the means over seeds, intervals over images, spread of PSNR over seeds."""
    row: dict[str, Any] = {"method": name}
    intervals: dict[str, list[float] | None] = {}
    for metric in metrics:
        if metric.name not in values:
            row[metric.name] = intervals[metric.name] = None
            row[f"{metric.name}_note"] = f"needs images of at least {metric.least_side} pixels, these have {size}"
            continue
        of_image = seed_mean(values[metric.name], metric)
        finite = of_image[np.isfinite(of_image)]
        row[metric.name], intervals[metric.name] = mean_and_interval(finite, metric)
        if len(finite) < len(of_image):
            what = "infinite (equal to the original)" if np.isposinf(of_image).any() else "undefined"
            left_out = len(of_image) - len(finite)
            row[f"{metric.name}_note"] = f"{what} for {left_out} of {len(of_image)} images, which the mean leaves out"
    if "psnr" in values:
        row["psnr_std"] = _spread(values["psnr"])
    for fact in ("num_tokens", "bits"):
        row[fact] = float(facts[fact].mean())
    row["bits_per_pixel"] = row["bits"] / size**2
    row["seconds_per_image"] = float(facts["seconds"].mean())
    return row | {"n": facts["bits"].shape[1], "image_size": size, "intervals": intervals}


def seed_mean(values: Float[np.ndarray, "s n"], metric: Metric) -> Float[np.ndarray, "n"]:
    """One value an image: its mean over seeds."""
    return np.exp(np.log(values).mean(0)) if metric.geometric else values.mean(0)


def mean_and_interval(values: Float[np.ndarray, "n"], metric: Metric) -> tuple[float | None, list[float] | None]:
    """Mean over images and its 95 % bootstrap interval; None where there is nothing to average."""
    if not len(values):
        return None, None
    scaled = np.log(values) if metric.geometric else values
    back = math.exp if metric.geometric else float
    interval = bootstrap_interval(scaled)
    return back(scaled.mean()), None if interval is None else [back(interval.low), back(interval.high)]


def _spread(psnr: Float[np.ndarray, "s n"]) -> float | None:
    """Standard deviation over seeds of the mean PSNR; None for one seed or infinite values."""
    means = psnr.mean(1)
    return float(means.std(ddof=1)) if len(means) > 1 and np.isfinite(means).all() else None


def list_per_image(
    method: str,
    names: Sequence[str],
    metrics: Sequence[Metric],
    values: dict[str, Float[np.ndarray, "s n"]],
    facts: dict[str, Float[np.ndarray, "s n"]],
) -> list[dict[str, Any]]:
    """`Evaluation.per_image`."""
    columns = {metric.name: seed_mean(values[metric.name], metric) for metric in metrics}
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
    evaluation: Evaluation, reference: Evaluation, metrics: Sequence[Metric]
) -> dict[str, dict[str, Any]]:
    """`evaluation` minus `reference` over the same images: metric -> mean and 95 % bootstrap interval.

    Images without a finite value on either side are left out, ratios (geometric measures) altogether.
    """
    differences = {}
    for name in (metric.name for metric in metrics if not metric.geometric):
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
