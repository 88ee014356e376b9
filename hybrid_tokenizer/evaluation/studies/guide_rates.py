"""Guides of several sizes against their bits (the paper's Fig. 4 and section 4.3), beside MoVQ, codecs and lossless guides.

Every guide is measured at full size, enlarged bicubically, and at its own size against the area-resized image.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.baselines import Codec
from hybrid_tokenizer.checkpoints.files import load_strict, write_atomic, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import LosslessGuide
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.measures import metrics_named
from hybrid_tokenizer.evaluation.pictures import picture_grid, write_png
from hybrid_tokenizer.evaluation.plots import draw_guide_rates
from hybrid_tokenizer.evaluation.summary import Evaluation
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.evaluation.token_cache import TokenCache
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.guide.warm_start import read_base
from hybrid_tokenizer.images import resize_area, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.protocol import ImageTokenizer

METRICS = metrics_named("psnr", "ssim", "effnet_lite2_distance", "squeezenet_distance")
AT_GUIDE_SIZE = ("psnr", "ssim")
"""The measures that the table also shows at the guide's own size."""
AT_GUIDE = "_at_guide_size"
COLUMNS = (
    Column("method", "guide"),
    Column("tokens", "tokens", "d"),
    Column("bits", "bits", ".0f"),
    Column("bytes", "bytes", ".0f"),
    Column("guide_size", "guide px", "d"),
    Column("psnr", "PSNR ↑", ".2f"),
    Column("ssim", "SSIM ↑", ".3f"),
    *(metric.column for metric in METRICS[2:]),
    Column("psnr" + AT_GUIDE, "PSNR at guide px ↑", ".2f"),
    Column("ssim" + AT_GUIDE, "SSIM at guide px ↑", ".3f"),
    Column("codebook_usage", "codes used", ".1%"),
    Column("perplexity", "perplexity", ".0f"),
)


class GuideRow:
    """The guide of the first `scales` grids of `encode`, bicubic to the size asked for.

    reference_size: the guide's own side, for a row that is measured there.
    """

    native_size = None
    deterministic = True

    def __init__(
        self,
        name: str,
        guide: GuideTokenizer,
        encode: TokenCache,
        scales: int,
        grid_size: tuple[int, int],
        reference_size: int | None = None,
    ):
        self.name = name
        self.guide = guide
        self.encode_all = encode
        self.scales = scales
        self.grid_size = grid_size
        self.reference_size = reference_size

    def encode(
        self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "b _ _"], ...]:
        """The grids that this row reads."""
        return self.encode_all(images)[: self.scales]

    def decode(
        self, tokens: tuple[Int[Tensor, "b _ _"], ...], size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """The guide, resized."""
        guide = self.guide.decode(tokens, grid_size=self.grid_size).float().clamp(-1, 1)
        return resize_bicubic(guide, size).clamp(-1, 1)

    def num_tokens(self, tokens: tuple[Int[Tensor, "b _ _"], ...]) -> Int[Tensor, "b"]:
        """Of all grids."""
        return torch.full((len(tokens[0]),), sum(grid.shape[1] * grid.shape[2] for grid in tokens))

    def bits(self, tokens: tuple[Int[Tensor, "b _ _"], ...]) -> Float[Tensor, "b"]:
        """log2 of the codebook's size per token."""
        return self.num_tokens(tokens) * math.log2(self.guide.codebook_size)


class Line(NamedTuple):
    """A line of the table: a row measured at full size and, for a guide with a loss of its own, at the guide's size."""

    row: ImageTokenizer
    kind: str
    """guide, movq, codec or lossless."""
    family: str
    """Lines of one family are one line of the plot."""
    guide_size: int
    at_guide_size: GuideRow | None = None
    model: str | None = None
    """The guide tokenizer whose codebook it reads."""


class GuideRates(NamedTuple):
    """The rows of the table, and the first images under each name."""

    rows: list[dict[str, Any]]
    pictures: list[tuple[str, Tensor]]


def load_guides(guides: Mapping[str, str], device: torch.device) -> dict[str, GuideTokenizer]:
    """Trained guide tokenizers by name."""
    return {name: GuideTokenizer.from_pretrained(folder).to(device).eval() for name, folder in guides.items()}


def load_movq(path: str, device: torch.device) -> GuideTokenizer:
    """A MoVQGAN checkpoint, or any guide tokenizer whose guide is as large as its input."""
    state, config = read_base(Path(path))
    if config.downsample_factor != config.upsample_factor:
        raise HybridTokenizerError(
            f"movq={path} makes guides smaller than its images; give a MoVQGAN checkpoint, or list it under guides"
        )
    model = GuideTokenizer(config)
    load_strict(model, state, path)
    return model.to(device).eval()


def lines_of(
    guides: Mapping[str, GuideTokenizer], movq: GuideTokenizer | None, image_size: int, codec: bool
) -> list[Line]:
    """The table: guides and their prefixes by growing bits, then the lossless guide and MoVQ at each of their sizes, then a
    codec at each of their byte counts."""
    ours: list[tuple[float, Line]] = []
    for name, guide in guides.items():
        grid = guide.config.grid_size((image_size, image_size))
        scale_sizes = guide.config.scale_sizes(grid)
        cache = TokenCache(guide.encode)
        for scales in range(1, len(scale_sizes) + 1):
            tokens = sum(h * w for h, w in scale_sizes[:scales])
            label = name if guide.config.guide_scales is None else f"{name}@{tokens}"
            line = _guide_line(label, "guide", name, guide, cache, scales, grid, model=name)
            ours.append((tokens * math.log2(guide.codebook_size), line))
    lines = [line for _, line in sorted(ours, key=lambda pair: pair[0])]
    sizes = sorted({line.guide_size for line in lines})
    for size in sizes:
        lossless = LosslessGuide(size)
        lossless.name = f"lossless {size}px"
        lines.append(Line(lossless, "lossless", lossless.name, size))
    for size in sizes if movq is not None else []:
        cache = TokenCache(lambda images, size=size: movq.encode(resize_area(images, (size, size))))
        grid = movq.config.grid_size((size, size))
        lines.append(_guide_line(f"movq {size}px", "movq", "MoVQ on the resized image", movq, cache, 1, grid))
    for budget in sorted({math.ceil(bits / 8) for bits, _ in ours}) if codec else []:
        row = Codec(lambda _, budget=budget: 8 * budget, f"codec {budget} B")
        lines.append(Line(row, "codec", "WebP or AVIF", image_size))
    return lines


def measure_guides(
    lines: Sequence[Line], images: EvalImages, *, device: torch.device, pictures: int = 6, **options: Any
) -> GuideRates:
    """Measure all lines on all images. Options as for `evaluate_rows`."""
    rows: list[ImageTokenizer] = [line.row for line in lines]
    rows += [line.at_guide_size for line in lines if line.at_guide_size is not None]
    evaluations = evaluate_rows(rows, images, METRICS, device=device, pictures=pictures, **options)
    by_name = {done.row["method"]: done for done in evaluations}
    entries = [_entry(line, by_name) for line in lines]
    originals = torch.stack([to_uint8(images[i]) for i in range(min(pictures, len(images)))])
    shown = [("original", originals), *((line.row.name, by_name[line.row.name].pictures) for line in lines)]
    return GuideRates(entries, shown)


@torch.no_grad()
def count_codes(
    guides: Mapping[str, GuideTokenizer], sets: Sequence[EvalImages], device: torch.device, batch_size: int
) -> dict[str, dict[str, float]]:
    """The use of each guide's codebook, by all of its scales together, over all sets."""
    uses = {name: CodebookUse(guide.codebook_size) for name, guide in guides.items()}
    for images in sets:
        for batch in tqdm(images.own_batches(batch_size, device), desc="counting codes", unit="batch", leave=False):
            for name, guide in guides.items():
                for grid in guide.encode(batch.references):
                    uses[name].update(grid)
    for use in uses.values():
        use.merge_ranks(device)
    return {name: use.compute() for name, use in uses.items()}


def write_guide_rates(
    folder: Path, rates: GuideRates, unavailable: Mapping[str, str], provenance: dict[str, Any], names: Sequence[str]
) -> str:
    """guide.json, guide.md, guide.png (the plot) and guide_pictures.png. Returns the table."""
    table = guide_markdown(rates.rows, unavailable)
    write_atomic(folder / "guide.md", table.encode())
    write_atomic(folder / "guide.png", draw_guide_rates(rates.rows))
    count = len(rates.pictures[0][1])
    captions = ["", *("" if row["psnr"] is None else f"{row['psnr']:.2f} dB" for row in rates.rows)]
    write_png(folder / "guide_pictures.png", picture_grid(rates.pictures, list(names)[:count], captions))
    write_json(folder / "guide.json", {"rows": rates.rows, "unavailable": dict(unavailable), "provenance": provenance})
    return table


def guide_markdown(rows: Sequence[dict[str, Any]], unavailable: Mapping[str, str]) -> str:
    """The table, and what its rows are."""
    lines = [f"- {name}: unavailable, {reason}.\n" for name, reason in unavailable.items()]
    note = (
        f"{rows[0]['n']} images. Lossless: the area-resized image, enlarged bicubically. Codec: the better of WebP and AVIF "
        "within the byte budget, or the smallest file if none fits; its bits are those of the files.\n"
    )
    return to_markdown(rows, COLUMNS) + "\n" + "".join(lines) + ("\n" if lines else "") + note


def _guide_line(
    name: str,
    kind: str,
    family: str,
    guide: GuideTokenizer,
    cache: TokenCache,
    scales: int,
    grid_size: tuple[int, int],
    model: str | None = None,
) -> Line:
    side = grid_size[0] * guide.upsample_factor
    row = GuideRow(name, guide, cache, scales, grid_size)
    own = GuideRow(f"{name} at guide size", guide, cache, scales, grid_size, reference_size=side)
    return Line(row, kind, family, side, own, model)


def _entry(line: Line, by_name: Mapping[str, Evaluation]) -> dict[str, Any]:
    """A row of the table out of one or two of the loop."""
    full = by_name[line.row.name].row
    own = {} if line.at_guide_size is None else by_name[line.at_guide_size.name].row
    costs_tokens, costs_bits = line.kind in ("guide", "movq"), line.kind != "lossless"
    entry: dict[str, Any] = {
        "method": line.row.name,
        "kind": line.kind,
        "family": line.family,
        "model": line.model,
        "tokens": round(full["num_tokens"]) if costs_tokens else None,
        "bits": full["bits"] if costs_bits else None,
        "bytes": full["bits"] / 8 if costs_bits else None,
        "guide_size": line.guide_size,
    }
    values = {metric.name: (full, metric.name) for metric in METRICS}
    values |= {
        metric.name + AT_GUIDE: (own, metric.name)
        for metric in METRICS
        if metric.name in AT_GUIDE_SIZE and own.get(metric.name) is not None
    }
    entry |= {key: row[name] for key, (row, name) in values.items()}
    return entry | {"n": full["n"], "intervals": {key: row["intervals"][name] for key, (row, name) in values.items()}}
