"""The measures of images against references, with the headings of their columns. A new one is a line in a list below."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer import perceptual
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.images import EvalBatch
from hybrid_tokenizer.evaluation.tables import Column
from hybrid_tokenizer.metrics import pixel, weighted

Function = Callable[[Tensor, Tensor], Tensor]
"""Images and references, both in [-1, 1] -> one value per image."""


@runtime_checkable
class Measure(Protocol):
    """One value per image of what a row decoded. It sees the images' batch: positions, references, next images."""

    name: str
    geometric: bool
    """Its values are ratios, averaged by their logarithms."""
    least_side: int
    """Smaller images have no value."""

    def __call__(self, output: Float[Tensor, "b 3 r r"], batch: EvalBatch) -> Float[Tensor, "b"]: ...


@dataclass(frozen=True)
class Metric:
    """A measure against the references of the batch. The heading is that of its column, with `digits` after the point."""

    name: str
    function: Function
    heading: str = ""
    digits: int = 3
    geometric: bool = False
    least_side: int = 1

    def __call__(self, output: Float[Tensor, "b 3 r r"], batch: EvalBatch) -> Float[Tensor, "b"]:
        """The values of a batch."""
        return self.function(output, batch.references)

    @property
    def column(self) -> Column:
        """Its column in a table."""
        return Column(self.name, self.heading or self.name, f".{self.digits}f")


class WithWeights(NamedTuple):
    """A measure whose weights the user brings. `load` reads them from a file or folder; its module is a `Function`."""

    name: str
    heading: str
    digits: int
    load: Callable[[Path], nn.Module] | None
    """None: a measure of whole sets, which `metrics.weighted.of_a_set` builds."""
    given: str
    """What the user must give."""

    @property
    def column(self) -> Column:
        """Its column in a table."""
        return Column(self.name, self.heading, f".{self.digits}f")


class Loaded(NamedTuple):
    """A feature network, and the features of references that the rows of a table share."""

    network: perceptual.FeatureDistance
    kept: perceptual.KeptFeatures


LOADED: list[Loaded] = []


def _load(network: perceptual.FeatureDistance) -> Loaded:
    LOADED.append(Loaded(network, perceptual.KeptFeatures()))
    return LOADED[-1]


def forget_references() -> None:
    """Give up the features of references, once the rows that share them are measured."""
    for loaded in LOADED:
        loaded.kept.clear()


@functools.cache
def _efficientnet(name: str, device: torch.device) -> Loaded:
    return _load(perceptual.EfficientNetDistance(name).fold().to(device))


def efficientnet(name: str) -> Function:
    """The feature distance of an EfficientNet-lite, whose weights are loaded at the first call."""

    def distance(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        network, kept = _efficientnet(name, images.device)
        return perceptual.feature_distance(network, images, references, kept)

    return distance


@functools.cache
def _squeezenet(device: torch.device) -> Loaded:
    return _load(perceptual.SqueezeNetDistance().to(device))


def squeezenet(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """The feature distance of SqueezeNet, whose weights are loaded at the first call."""
    network, kept = _squeezenet(images.device)
    return perceptual.feature_distance(network, images, references, kept)


# `tiny` is trained and searches with lite0, and its decode options were chosen with lite1. lite2 had no part in either, so
# its distance is one that validates. It is their sister all the same; SqueezeNet, which had no part either, is not.
SQUEEZENET = Metric("squeezenet_distance", squeezenet, "SqueezeNet ↓", least_side=perceptual.SQUEEZENET_LEAST_SIDE)
"""Measured where the packages with its weights are installed."""

METRICS = (
    Metric("psnr", pixel.psnr, "PSNR ↑", 2),
    Metric("ssim", pixel.ssim, "SSIM ↑", least_side=pixel.SSIM_WINDOW),
    Metric("ms_ssim", pixel.ms_ssim, "MS-SSIM ↑", least_side=pixel.MS_SSIM_LEAST_SIDE),
    Metric("ssim_paper_compat", pixel.ssim_paper_compat, "SSIM, paper's ↑"),
    Metric("effnet_lite2_distance", efficientnet("lite2"), "EffNet-lite2 ↓"),
    SQUEEZENET,
    Metric("haarpsi", perceptual.haarpsi, "HaarPSI ↑"),
    Metric("mdsi", perceptual.mdsi, "MDSI ↓"),
    Metric("high_frequency_energy", pixel.high_frequency_energy, "HF energy, 1 is right", geometric=True),
    Metric("effnet_lite0_distance (trained on)", efficientnet("lite0"), "EffNet-lite0 (trained on) ↓"),
)
"""The measures of every table of reconstructions."""

WITH_WEIGHTS = (
    WithWeights("lpips_alex", "LPIPS-Alex ↓", 3, functools.partial(weighted.LPIPS, "alex"), weighted.ALEX_FILE),
    WithWeights("lpips_vgg", "LPIPS-VGG ↓", 3, functools.partial(weighted.LPIPS, "vgg"), weighted.VGG_FILE),
    WithWeights("clip_i", "CLIP-I ↑", 3, weighted.clip_similarity, "a folder of a CLIP model in transformers' form"),
    WithWeights(
        "dino_distance", "DINO distance ↓", 3, weighted.DinoDistance, "a folder of a DINO model in transformers' form"
    ),
    WithWeights("rfid", "rFID ↓", 2, None, weighted.INCEPTION_FILE),
    WithWeights("kid", "KID ↓", 4, None, weighted.INCEPTION_FILE),
)

LITE1 = Metric("effnet_lite1_distance", efficientnet("lite1"), "EffNet-lite1 ↓")
"""The distance by which the decode sweep chooses. No other table shows it."""


def default_metrics(device: torch.device | str = "cpu", weights: Mapping[str, str] | None = None) -> list[Metric]:
    """`METRICS` that are installed, and those measures per image that `weights` (name -> file or folder) has weights for."""
    weights = weights or {}
    known = [measure.name for measure in WITH_WEIGHTS]
    if unknown := sorted(set(weights) - set(known)):
        raise HybridTokenizerError(f"metric_weights names {', '.join(unknown)}; use some of {', '.join(known)}")
    loaded = [
        Metric(measure.name, measure.load(Path(weights[measure.name])).to(device), measure.heading, measure.digits)
        for measure in WITH_WEIGHTS
        if measure.name in weights and measure.load is not None
    ]
    return [*installed(METRICS), *loaded]


def metrics_named(*names: str) -> list[Metric]:
    """Some of `METRICS`, in the order of the names, without those that are not installed."""
    by_name = {metric.name: metric for metric in METRICS}
    return installed([by_name[name] for name in names])


def installed(metrics: Sequence[Metric]) -> list[Metric]:
    """The measures whose weights are here."""
    return [metric for metric in metrics if metric is not SQUEEZENET or perceptual.has_squeezenet()]


def unavailable_metrics(weights: Mapping[str, str]) -> dict[str, str]:
    """The measures that a run lacks, and why."""
    unavailable = {
        measure.name: f"no weights were given: +metric_weights.{measure.name}=PATH, {measure.given}"
        for measure in WITH_WEIGHTS
        if measure.name not in weights
    }
    if not perceptual.has_squeezenet():
        unavailable[SQUEEZENET.name] = f"its weights are not installed: {perceptual.SQUEEZENET_PACKAGES}"
    return unavailable
