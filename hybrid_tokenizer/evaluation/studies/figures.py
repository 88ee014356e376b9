"""The paper's Figures 2 to 5: decoded photographs in lines and columns.

2: tokenizers side by side. 3: guides of several sizes, and the hybrid's image from each. 4: our guide against MoVQ on the
area-resized photograph. 5: super-resolution of the guide against diffusion.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hybrid_tokenizer.baselines import Codec
from hybrid_tokenizer.checkpoints.files import write_json
from hybrid_tokenizer.evaluation.controls import FoundGuides, GuideOfHybrid, GuideOnly, HybridRow, LosslessGuide
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.evaluation.pictures import Line, Picture, draw_panels, write_figure
from hybrid_tokenizer.evaluation.rows import rows_by_name
from hybrid_tokenizer.evaluation.summary import Evaluation
from hybrid_tokenizer.evaluation.super_resolution import NAME as SUPER_RESOLUTION
from hybrid_tokenizer.evaluation.super_resolution import SuperResolution
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.images import resize_area, resize_bicubic, to_uint8
from hybrid_tokenizer.protocol import ImageTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOVQ = "movq_"
OUR_COLUMNS = ("semantic_only", "guide_only", "hybrid", "codec")


class GuideVariant(NamedTuple):
    """A guide of one size: a tokenizer and the scales that are kept of its nested guide (None: the guide is not nested)."""

    tokenizer: HybridTokenizer
    guide_scales: int | None
    num_tokens: int
    """At the native size."""
    tag: str
    """Unique among the variants of a figure."""
    found: FoundGuides
    """Shared by all rows of a tokenizer, so that each guide is searched for once."""

    @property
    def guide_size(self) -> int:
        """Side of the guide image at the native size."""
        return self.tokenizer.guide.config.guide_size

    @property
    def heading(self) -> str:
        """Tokens, and the side of the guide image."""
        nested = "" if self.guide_scales is None else ", nested"
        return f"{self.num_tokens} tokens\n{self.guide_size} px{nested}"


class DrawnFigure(NamedTuple):
    """A figure and the measurements that it shows."""

    figure: "Figure"
    evaluations: list[Evaluation]


class AtGuideSize:
    """Another tokenizer, run on the area-resized image, bicubic back up.

    guide_size: of the shorter side.
    """

    native_size = None

    def __init__(self, row: ImageTokenizer, guide_size: int):
        self.row, self.guide_size = row, guide_size
        self.name = f"{row.name}@{guide_size}px"
        self.deterministic = bool(getattr(row, "deterministic", False))

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> Any:
        """Tokens of the resized images."""
        return self.row.encode(resize_area(images, self._guide_shape(images.shape[-2:])), generator)

    def decode(
        self, tokens: Any, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """At the guide's size, then bicubic to `size`."""
        return resize_bicubic(self.row.decode(tokens, self._guide_shape(size), generator), size).clamp(-1, 1)

    def num_tokens(self, tokens: Any) -> Int[Tensor, "b"]:
        """The other tokenizer's."""
        return self.row.num_tokens(tokens)

    def bits(self, tokens: Any) -> Float[Tensor, "b"]:
        """The other tokenizer's."""
        return self.row.bits(tokens)

    def _guide_shape(self, size: Sequence[int]) -> tuple[int, int]:
        height, width = (max(1, round(side * self.guide_size / min(size))) for side in size)
        return height, width


class Painter:
    """Runs rows on the photographs of a figure. Rows of one name run once, however many figures show them."""

    def __init__(
        self,
        images: EvalImages,
        *,
        seed: int = 0,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ):
        self.images = images
        self.originals = [to_uint8(images[i]) for i in range(len(images))]
        self._options: dict[str, Any] = {
            "seeds": (seed,), "batch_size": batch_size, "device": device, "progress": progress, "pictures": len(images),
        }  # fmt: skip
        self._done: dict[str, Evaluation] = {}

    def run(self, row: ImageTokenizer) -> Evaluation:
        """PSNR, tokens, bits and all pictures of a row."""
        if row.name not in self._done:
            self._done[row.name] = evaluate(row, self.images, metrics_named("psnr"), **self._options)
        return self._done[row.name]


def figure_2(painter: Painter, rows: Sequence[ImageTokenizer]) -> DrawnFigure:
    """The original, then a column per row; a line per photograph."""
    done = [painter.run(row) for row in rows]
    headings = ["original", *(_heading(row, result) for row, result in zip(rows, done, strict=True))]
    lines = [
        Line("", [Picture(original), *(_picture(result, i) for result in done)])
        for i, original in enumerate(painter.originals)
    ]
    return DrawnFigure(draw_panels(headings, lines), done)


def figure_3(painter: Painter, variants: Sequence[GuideVariant]) -> DrawnFigure:
    """The guide of the hybrid's tokens and the hybrid, a column per guide size."""
    return _by_guide_size(painter, variants, {"guide": _guides_of_hybrids(variants), "hybrid": _hybrids(variants)})


def figure_4(painter: Painter, variants: Sequence[GuideVariant], others: Sequence[ImageTokenizer] = ()) -> DrawnFigure:
    """The area-resized photograph, our guide, and each of `others` on the resized photograph, a column per guide size."""
    kinds: dict[str, list[ImageTokenizer]] = {
        "area-resized": [LosslessGuide(variant.guide_size) for variant in variants],
        "ours": _guides(variants),
    }
    for row, variant in zip(kinds["area-resized"], variants, strict=True):
        row.name = f"{row.name}@{variant.guide_size}px"
    for other in others:
        kinds[other.name] = [AtGuideSize(other, variant.guide_size) for variant in variants]
    return _by_guide_size(painter, variants, kinds)


def figure_5(painter: Painter, variants: Sequence[GuideVariant], upscaler: nn.Module | None = None) -> DrawnFigure:
    """The guide of the hybrid's tokens, enlarged bicubically, by super-resolution (if there is an upscaler) and by diffusion."""
    kinds: dict[str, list[ImageTokenizer]] = {"bicubic": _guides_of_hybrids(variants)}
    if upscaler is not None:
        kinds["super-resolution"] = [
            SuperResolution(
                v.tokenizer, upscaler, f"{SUPER_RESOLUTION}@{v.tag}", guide_scales=v.guide_scales, found=v.found
            )
            for v in variants
        ]
    return _by_guide_size(painter, variants, kinds | {"diffusion": _hybrids(variants)})


def guide_variants(tokenizer: HybridTokenizer, others: Sequence[HybridTokenizer] = ()) -> list[GuideVariant]:
    """The prefixes of the tokenizer's guide, the whole guide first, then those of the others."""
    variants = []
    for place, one in enumerate((tokenizer, *others)):
        totals = list(accumulate(h * w for h, w in one.guide.guide_scale_sizes((one.native_size, one.native_size))))
        nested, found = one.guide.config.guide_scales is not None, FoundGuides(one)
        variants += [
            GuideVariant(one, scales if nested else None, total, f"{total}" + (f"-{place}" if place else ""), found)
            for scales, total in enumerate(totals, start=1)
        ]
    return sorted(variants, key=lambda variant: (variant.tokenizer is not tokenizer, -variant.num_tokens))


def rows_of_figure_2(
    tokenizer: HybridTokenizer, rows: list[str] | None = None, baselines: Mapping[str, str] | None = None
) -> list[ImageTokenizer]:
    """Rows by name. None is the baselines that have no figure of their own, then `OUR_COLUMNS`."""
    others = [name for name in baselines or {} if not name.startswith(MOVQ) and name != SUPER_RESOLUTION]
    return rows_by_name(tokenizer, [*others, *OUR_COLUMNS] if rows is None else rows, baselines)


def write_drawn(folder: Path, number: str, drawn: DrawnFigure, provenance: dict[str, Any]) -> list[Path]:
    """figureN.png, figureN.pdf, and figureN.json with the numbers they show."""
    report = {
        "rows": [result.row for result in drawn.evaluations],
        "per_image": [entry for result in drawn.evaluations for entry in result.per_image],
        "provenance": provenance,
    }
    stem = folder / f"figure{number}"
    write_json(stem.with_suffix(".json"), report)
    return [*write_figure(stem, drawn.figure), stem.with_suffix(".json")]


def _guides(variants: Sequence[GuideVariant]) -> list[ImageTokenizer]:
    return [GuideOnly(v.tokenizer, f"guide_only@{v.tag}", guide_scales=v.guide_scales) for v in variants]


def _guides_of_hybrids(variants: Sequence[GuideVariant]) -> list[ImageTokenizer]:
    return [
        GuideOfHybrid(v.tokenizer, f"guide_of_hybrid@{v.tag}", guide_scales=v.guide_scales, found=v.found)
        for v in variants
    ]


def _hybrids(variants: Sequence[GuideVariant]) -> list[ImageTokenizer]:
    return [HybridRow(v.tokenizer, f"hybrid@{v.tag}", guide_scales=v.guide_scales, found=v.found) for v in variants]


def _by_guide_size(
    painter: Painter, variants: Sequence[GuideVariant], kinds: Mapping[str, Sequence[ImageTokenizer]]
) -> DrawnFigure:
    """A block of lines per photograph, a line per kind, a column per guide. The original opens each block."""
    done = {kind: [painter.run(row) for row in rows] for kind, rows in kinds.items()}
    lines = []
    for i, original in enumerate(painter.originals):
        for place, (kind, results) in enumerate(done.items()):
            first = Picture(None if place else original)
            lines.append(Line(kind, [first, *(_picture(result, i) for result in results)], opens=place == 0 < i))
    headings = ["original", *(variant.heading for variant in variants)]
    return DrawnFigure(draw_panels(headings, lines), [result for results in done.values() for result in results])


def _picture(result: Evaluation, i: int) -> Picture:
    value = result.per_image[i]["psnr"]
    return Picture(result.pictures[i], "∞ dB" if value is None else f"{value:.1f} dB")


def _heading(row: ImageTokenizer, result: Evaluation) -> str:
    """The name and the cost: the mean number of tokens, or the bytes of a file."""
    count = result.row["num_tokens"]
    cost = f"{count:.0f} bytes" if isinstance(row, Codec) else f"{count:.0f} tokens, {result.row['bits'] / 8:.0f} B"
    return f"{row.name.replace('_', ' ')}\n{cost}"
