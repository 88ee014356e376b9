"""Guides of several sizes against their bits: PSNR and SSIM at the guide's own size and, bicubic back up, at full size.

The paper's Fig. 4 and section 4.3, with the codecs at equal bytes and the lossless ceilings beside them.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.baselines import Codec
from hybrid_tokenizer.checkpoints.files import load_strict, write_atomic, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.pictures import picture_grid, write_png
from hybrid_tokenizer.evaluation.summary import Metric, mean_and_interval
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.guide.warm_start import read_base
from hybrid_tokenizer.images import resize_area, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.metrics.codebook import CodebookUse

METRICS = (Metric("psnr", pixel.psnr), Metric("ssim", pixel.ssim, least_side=11))
AT_GUIDE = "_at_guide_size"
COLUMNS = {  # key -> heading, format
    "tokens": ("tokens", "d"),
    "bits": ("bits", ".0f"),
    "bytes": ("bytes", ".0f"),
    "guide_size": ("guide px", "d"),
    "psnr": ("PSNR ↑", ".2f"),
    "ssim": ("SSIM ↑", ".3f"),
    "psnr" + AT_GUIDE: ("PSNR at guide px ↑", ".2f"),
    "ssim" + AT_GUIDE: ("SSIM at guide px ↑", ".3f"),
    "codebook_usage": ("codes used", ".1%"),
    "perplexity": ("perplexity", ".0f"),
}
KINDS = {
    "guide": "ours",
    "movq": "MoVQ on the resized image",
    "codec": "WebP or AVIF",
    "lossless": "no loss at guide px",
}


class Reading(NamedTuple):
    """One way to a guide image, and back to full size."""

    name: str
    kind: str
    tokens: int | None
    bits: float | None
    size: tuple[int, int]
    """Of the guide image."""
    model: str | None
    """Whose indices `guide_of` reads; None for what has no codebook."""
    guide_of: Callable[
        [Float[Tensor, "b 3 H W"], dict[str, tuple[Int[Tensor, "b _ _"], ...]]], Float[Tensor, "b 3 h w"]
    ]
    """Images and every model's indices -> guide images in [-1, 1]; at full size for a codec."""


class Study(NamedTuple):
    """The rows, and the first images under each name."""

    rows: list[dict[str, Any]]
    pictures: list[tuple[str, Tensor]]


def load_guides(guides: Mapping[str, str], device: torch.device) -> dict[str, GuideTokenizer]:
    """Trained guide tokenizers by name."""
    return {name: GuideTokenizer.from_pretrained(folder).to(device) for name, folder in guides.items()}


def load_movq(path: str, device: torch.device) -> GuideTokenizer:
    """A MoVQGAN checkpoint, or any guide tokenizer whose tokens are as fine as its guide."""
    state, config = read_base(Path(path))
    if config.downsample_factor != config.upsample_factor:
        raise HybridTokenizerError(
            f"movq={path} makes guides smaller than its images; give a MoVQGAN checkpoint, or list it under guides"
        )
    model = GuideTokenizer(config)
    load_strict(model, state, path)
    return model.to(device).eval()


def readings(
    guides: Mapping[str, GuideTokenizer], movq: GuideTokenizer | None, image_size: int, codec: bool
) -> list[Reading]:
    """Every row: guides and their prefixes, MoVQ and the lossless ceiling at each of their sizes, a codec at each size in
    bytes. By kind, each with growing bits."""
    full = (image_size, image_size)
    ours: list[Reading] = []
    for name, guide in guides.items():
        grid = guide.config.grid_size(full)
        shape = (grid[0] * guide.upsample_factor, grid[1] * guide.upsample_factor)
        sizes = guide.config.scale_sizes(grid)
        for scales in range(1, len(sizes) + 1):
            tokens = sum(h * w for h, w in sizes[:scales])
            label = name if guide.config.guide_scales is None else f"{name}@{tokens}"
            ours.append(
                Reading(
                    label,
                    "guide",
                    tokens,
                    bits_of(guide, tokens),
                    shape,
                    name,
                    decode_prefix(guide, name, scales, grid),
                )
            )
    sizes = sorted({reading.size for reading in ours})
    others = [
        Reading(f"lossless {s[0]}px", "lossless", None, None, s, None, lambda x, _, s=s: resize_area(x, s))
        for s in sizes
    ]
    if movq is not None:
        for size in sizes:
            grid = movq.config.grid_size(size)
            name = f"movq {size[0]}px"
            tokens = grid[0] * grid[1]
            decode = decode_prefix(movq, name, 1, grid)
            others.append(Reading(name, "movq", tokens, bits_of(movq, tokens), size, name, decode))
    if codec:
        for budget in sorted({math.ceil(reading.bits / 8) for reading in ours if reading.bits}):
            row = Codec(lambda _, budget=budget: 8 * budget)
            others.append(
                Reading(f"codec {budget} B", "codec", None, 8 * budget, full, None,
                        lambda x, _, row=row: row.decode(row.encode(x), tuple(x.shape[-2:])))
            )  # fmt: skip
    return sorted(ours, key=lambda reading: reading.bits) + others


def bits_of(guide: GuideTokenizer, tokens: int) -> float:
    """Of so many indices."""
    return tokens * math.log2(guide.codebook_size)


def decode_prefix(guide: GuideTokenizer, name: str, scales: int, grid: tuple[int, int]) -> Callable[..., Tensor]:
    """The guide of the first scales."""
    return lambda images, indices: guide.decode(indices[name][:scales], grid_size=grid)


@torch.no_grad()
def study(
    rows: Sequence[Reading],
    guides: Mapping[str, GuideTokenizer],
    movq: GuideTokenizer | None,
    images: EvalImages,
    *,
    device: torch.device,
    batch_size: int = 8,
    pictures: int = 6,
    progress: bool = True,
) -> Study:
    """Every reading on every image; each image is encoded once a model."""
    values = {row.name: {key: np.zeros(len(images)) for key in row_keys(row)} for row in rows}
    shown: dict[str, list[Tensor]] = {row.name: [] for row in rows}
    originals: list[Tensor] = []
    with tqdm(total=len(images), desc="guides", unit="image", disable=not progress) as bar:
        for batch in images.batches(batch_size):
            references = batch.references.to(device)
            indices = encode_all(rows, guides, movq, references)
            wanted = max(0, pictures - batch.positions.start)
            originals += to_uint8(references[:wanted]).cpu().unbind()
            for row in rows:
                guide = row.guide_of(references, indices).float().clamp(-1, 1)
                full = resize_bicubic(guide, tuple(references.shape[-2:])).clamp(-1, 1)
                shown[row.name] += to_uint8(full[:wanted]).cpu().unbind()
                target = resize_area(references, row.size)
                for metric in METRICS:
                    for suffix, output, reference in (("", full, references), (AT_GUIDE, guide, target)):
                        if metric.name + suffix in values[row.name]:
                            measured = metric.measure(output, reference)
                            values[row.name][metric.name + suffix][batch.positions] = measured.cpu().numpy()
            bar.update(len(references))
    results = []
    for row in rows:
        entry: dict[str, Any] = {"method": row.name, "kind": row.kind, "tokens": row.tokens, "bits": row.bits}
        entry |= {"bytes": None if row.bits is None else row.bits / 8, "guide_size": min(row.size), "intervals": {}}
        for key, measured in values[row.name].items():
            metric = next(metric for metric in METRICS if key.startswith(metric.name))
            finite = measured[np.isfinite(measured)]
            entry[key], entry["intervals"][key] = mean_and_interval(finite, metric)
        results.append(entry | {"n": len(images)})
    grids = [("original", torch.stack(originals))]
    grids += [(row.name, torch.stack(shown[row.name])) for row in rows]
    return Study(results, grids)


def row_keys(row: Reading) -> list[str]:
    """What is measured: at full size, and at the guide's unless that is the same or nothing was lost there."""
    keys = [metric.name for metric in METRICS]
    if row.kind in ("guide", "movq"):
        keys += [metric.name + AT_GUIDE for metric in METRICS if min(row.size) >= metric.least_side]
    return keys


def encode_all(
    rows: Sequence[Reading],
    guides: Mapping[str, GuideTokenizer],
    movq: GuideTokenizer | None,
    images: Float[Tensor, "b 3 H W"],
) -> dict[str, tuple[Int[Tensor, "b _ _"], ...]]:
    """The indices that the readings need, by their model's name."""
    indices = {name: guide.encode(images) for name, guide in guides.items()}
    if movq is not None:
        indices |= {row.model: movq.encode(resize_area(images, row.size)) for row in rows if row.kind == "movq"}
    return indices


@torch.no_grad()
def count_codes(
    guides: Mapping[str, GuideTokenizer], sets: Sequence[EvalImages], device: torch.device, batch_size: int
) -> dict[str, dict[str, float]]:
    """Use of each guide's codebook by all of its scales together over all sets."""
    uses = {name: CodebookUse(guide.codebook_size) for name, guide in guides.items()}
    for images in sets:
        total = -(-len(images) // batch_size)
        for batch in tqdm(images.batches(batch_size), total=total, desc="use of the codes", unit="batch"):
            for name, guide in guides.items():
                for grid in guide.encode(batch.references.to(device)):
                    uses[name].update(grid)
    return {name: use.compute() for name, use in uses.items()}


def write_study(
    folder: Path, study: Study, unavailable: Mapping[str, str], provenance: dict[str, Any], names: Sequence[str]
) -> str:
    """guide.json, guide.md, guide.png (curves) and guide_pictures.png. Returns the table."""
    table = to_markdown(study.rows, unavailable)
    write_atomic(folder / "guide.md", table.encode())
    write_atomic(folder / "guide.png", plot(study.rows))
    count = len(study.pictures[0][1])
    captions = ["", *("" if row["psnr"] is None else f"{row['psnr']:.2f} dB" for row in study.rows)]
    write_png(folder / "guide_pictures.png", picture_grid(study.pictures, list(names)[:count], captions))
    report = {"rows": study.rows, "unavailable": dict(unavailable), "provenance": provenance}
    write_json(folder / "guide.json", report)
    return table


def to_markdown(rows: Sequence[dict[str, Any]], unavailable: Mapping[str, str]) -> str:
    """One line a row, in their order."""
    headings = [heading for heading, _ in COLUMNS.values()]
    lines = ["| guide | " + " | ".join(headings) + " |", "|---|" + "---:|" * len(headings)]
    for row in rows:
        cells = ["–" if row.get(key) is None else format(row[key], how) for key, (_, how) in COLUMNS.items()]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    lines += [
        f"| {name} | unavailable: {reason} |" + " |" * (len(headings) - 1) for name, reason in unavailable.items()
    ]
    count = rows[0]["n"]
    lines += ["", f"{count} images. Lossless and codec rows: the area-resized image bicubic back up, and the better of WebP "
              "and AVIF in at most so many bytes."]  # fmt: skip
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """PSNR and SSIM against bits at full size and at the guide's, a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    keys = [
        ("psnr", "PSNR at full size, dB"),
        ("ssim", "SSIM at full size"),
        ("psnr" + AT_GUIDE, "PSNR at guide size, dB"),
    ]
    for panel, (key, label) in zip(figure.subplots(1, 3), keys, strict=True):
        for kind, style in (("guide", "o"), ("movq", "s-"), ("codec", "k--")):
            for family in dict.fromkeys(family_of(row) for row in rows if row["kind"] == kind):
                line = [
                    row for row in rows if row["kind"] == kind and family_of(row) == family and row.get(key) is not None
                ]
                if not line:
                    continue
                label_of_line = f"{family}, nested" if len(line) > 1 and kind == "guide" else family
                panel.plot(
                    [row["bits"] for row in line], [row[key] for row in line],
                    style + ("-" if len(line) > 1 and kind == "guide" else ""), ms=5, lw=1.2, label=label_of_line,
                )  # fmt: skip
        for row in rows:
            if row["kind"] == "lossless" and key in ("psnr", "ssim"):
                panel.axhline(row[key], color="gray", lw=0.7, ls=":")
                panel.annotate(
                    row["method"], (0, row[key]), xycoords=("axes fraction", "data"), fontsize=6, va="bottom"
                )
        panel.set_xscale("log", base=2)
        panel.set_xlabel("bits an image")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        if key == "psnr":
            panel.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def family_of(row: dict[str, Any]) -> str:
    """Rows of one line in the plot: the prefixes of a guide, MoVQ at all sizes, the codecs at all sizes."""
    return row["method"].split("@")[0] if row["kind"] == "guide" else KINDS[row["kind"]]
