"""Damaged guides through every method: what each loses against the undamaged guide, with paired intervals."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import NO_DAMAGE, Damage
from hybrid_tokenizer.evaluation.controls import HybridRow
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.pictures import Line, Picture, draw_panels, write_figure
from hybrid_tokenizer.evaluation.rows import VARIANT, variant_row
from hybrid_tokenizer.evaluation.studies.damage import bend, replace_tokens, turn
from hybrid_tokenizer.evaluation.summary import Metric, default_metrics, mean_and_interval
from hybrid_tokenizer.evaluation.super_resolution import HOW, LEFT_OUT, enlarge, load_upscaler
from hybrid_tokenizer.evaluation.super_resolution import NAME as SUPER_RESOLUTION
from hybrid_tokenizer.hybrid import HybridTokenizer, image_generators
from hybrid_tokenizer.images import from_uint8, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.metrics.statistics import bootstrap_interval
from hybrid_tokenizer.tokens import HybridTokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BICUBIC, HYBRID = "bicubic", "hybrid"
MEASURES = {  # key -> heading, digits
    "psnr": ("PSNR ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "effnet_lite2_distance": ("EffNet-lite2 ↓", 3),
    "effnet_lite0_distance (trained on)": ("EffNet-lite0 (trained on) ↓", 3),
}
LOST = ("psnr", "effnet_lite2_distance")
"""Whose change by the damage the table shows; the JSON has all of them."""

Render = Callable[[Float[Tensor, "b 3 gh gw"], HybridTokens], Float[Tensor, "b 3 h w"]]
"""Guide images, perhaps damaged, and the undamaged tokens -> images of the tokens' image size."""


class Correction(NamedTuple):
    """The table, and the first reconstructions by (damage, method)."""

    rows: list[dict[str, Any]]
    pictures: dict[tuple[Damage, str], UInt8[Tensor, "k 3 r r"]]


def correction_metrics(device: torch.device | str) -> list[Metric]:
    """Of the measures of every table, those shown here."""
    return [metric for metric in default_metrics(device) if metric.name in MEASURES]


def renderers(
    tokenizer: HybridTokenizer, names: Sequence[str] | None, baselines: Mapping[str, str], seed: int
) -> dict[str, Render]:
    """The methods by name; None is bicubic, super_resolution where it has weights, and hybrid."""
    if unknown := sorted(set(baselines) - {SUPER_RESOLUTION}):
        raise HybridTokenizerError(f"baselines {', '.join(unknown)} take no guide; give {SUPER_RESOLUTION} or nothing")
    if names is None:
        names = [BICUBIC, *baselines, HYBRID]
        if not baselines:
            tqdm.write(LEFT_OUT)
    if not names or len(set(names)) < len(names):
        raise HybridTokenizerError(f"methods={list(names)} must be one or more different names")
    return {name: _renderer(tokenizer, name, baselines, seed) for name in names}


def _renderer(tokenizer: HybridTokenizer, name: str, baselines: Mapping[str, str], seed: int) -> Render:
    if name == BICUBIC:
        return lambda guide, tokens: resize_bicubic(guide, tokens.image_size).clamp(-1, 1)
    if name == SUPER_RESOLUTION:
        if name not in baselines:
            raise HybridTokenizerError(f"{name} needs weights: {HOW} as baselines.{name}")
        upscaler = load_upscaler(baselines[name])
        return lambda guide, tokens: enlarge(upscaler, guide, tokens.image_size)
    if name != HYBRID and not name.startswith(VARIANT):
        raise HybridTokenizerError(
            f"method {name!r} is unknown; use {BICUBIC}, {SUPER_RESOLUTION}, {HYBRID}, or a variant as in {VARIANT}s0.6"
        )
    row = HybridRow(tokenizer) if name == HYBRID else variant_row(tokenizer, name)
    if row.guide_scales is not None:
        raise HybridTokenizerError(
            f"method {name!r} drops guide tokens, which are damaged as a whole; leave the number out"
        )

    def diffuse(guide: Float[Tensor, "b 3 gh gw"], tokens: HybridTokens) -> Float[Tensor, "b 3 h w"]:
        indices = [tokens.semantic_indices, *tokens.guide_indices]  # undamaged: every damage gets the same noise
        return tokenizer.diffusion.decode(
            guide,
            tokenizer.semantic.decode(tokens.semantic_indices),
            tokens.image_size,
            **row.options,
            generator=image_generators(indices, torch.Generator().manual_seed(seed)),
        )

    return diffuse


@torch.no_grad()
def damaged_guide(
    tokenizer: HybridTokenizer, tokens: HybridTokens, damage: Damage, positions: Sequence[int], seed: int
) -> Float[Tensor, "b 3 gh gw"]:
    """The guide images of damaged tokens, or damaged guide images.

    positions: of the images in their set. What is drawn is a function of them and of the seed: a larger share of tokens
    contains a smaller one, a stronger bend is the same bend.
    """
    generators = [
        torch.Generator().manual_seed(int(np.random.SeedSequence([seed, position]).generate_state(1)[0]))
        for position in positions
    ]
    indices = tokens.guide_indices
    if damage.kind == "tokens":
        indices = replace_tokens(indices, damage.amount, tokenizer.guide.codebook_size, generators)
    guide = tokenizer.decode_guide(indices, tokens.image_size)
    if damage.kind == "elastic":
        return bend(guide, damage.amount, generators)
    return turn(guide, damage.amount) if damage.kind == "rotation" else guide


@torch.no_grad()
def evaluate_correction(
    tokenizer: HybridTokenizer,
    images: EvalImages,
    damages: Sequence[Damage],
    methods: Mapping[str, Render],
    metrics: Sequence[Metric],
    *,
    seed: int = 0,
    batch_size: int = 8,
    pictures: int = 0,
    progress: bool = True,
) -> Correction:
    """A row for each damage and method, against the undamaged photographs. `damages` must hold `NO_DAMAGE`."""
    cells = [(damage, method) for damage in damages for method in methods]
    values = {cell: {metric.name: np.zeros(len(images)) for metric in metrics} for cell in cells}
    kept: dict[tuple[Damage, str], list[Tensor]] = {cell: [] for cell in cells}
    with tqdm(total=len(cells) * len(images), desc="correction", unit="image", disable=not progress) as bar:
        for batch in images.batches(batch_size):
            references = batch.references.to(tokenizer.device)
            tokens = tokenizer.encode(references)
            for damage in damages:
                guide = damaged_guide(tokenizer, tokens, damage, batch.positions, seed)
                for method, render in methods.items():
                    output = render(guide, tokens)
                    for metric in metrics:
                        measured = metric.measure(output, references).cpu().numpy()
                        values[damage, method][metric.name][batch.positions] = measured
                    left = max(0, pictures - batch.positions.start)
                    kept[damage, method].append(to_uint8(output[:left]).cpu())
                    bar.update(len(references))
    rows = [_row(cell, values[cell], values[NO_DAMAGE, cell[1]], metrics) for cell in cells]
    return Correction(rows, {cell: torch.cat(parts) for cell, parts in kept.items()})


def _row(
    cell: tuple[Damage, str],
    values: dict[str, Float[np.ndarray, "n"]],
    undamaged: dict[str, Float[np.ndarray, "n"]],
    metrics: Sequence[Metric],
) -> dict[str, Any]:
    """Means and intervals, and the paired change against the same method without damage."""
    damage, method = cell
    row: dict[str, Any] = {"damage": damage.label, "kind": damage.kind, "amount": damage.amount, "method": method}
    intervals, changes = {}, {}
    for metric in metrics:
        of_image = values[metric.name]
        row[metric.name], intervals[metric.name] = mean_and_interval(of_image, metric)
        change = of_image - undamaged[metric.name]
        interval = bootstrap_interval(change)
        changes[metric.name] = {"mean": float(change.mean()), "interval": None if interval is None else list(interval)}
    row |= {"n": len(of_image), "intervals": intervals}
    return row if damage == NO_DAMAGE else row | {"change": changes}


def write_correction(folder: Path, correction: Correction, images: EvalImages, provenance: dict[str, Any]) -> str:
    """correction.json, correction.md, correction.png and correction.pdf. Returns the Markdown."""
    table = to_markdown(correction.rows)
    write_atomic(folder / "correction.md", table.encode())
    if any(len(pictures) for pictures in correction.pictures.values()):
        write_figure(folder / "correction", draw_correction(correction, images))
    write_json(folder / "correction.json", {"rows": correction.rows, "provenance": provenance})
    return table


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a damage and method."""
    shown = [key for key in MEASURES if key in rows[0]]
    lost = [key for key in LOST if key in rows[0]]
    headings = [
        "damage",
        "method",
        *(MEASURES[key][0] for key in shown),
        *(f"Δ {MEASURES[key][0][:-2]}" for key in lost),
    ]
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in rows:
        cells = [row["damage"], row["method"], *(f"{row[key]:.{MEASURES[key][1]}f}" for key in shown)]
        lines.append("| " + " | ".join([*cells, *(_change(row, key) for key in lost)]) + " |")
    note = "Δ: the change by the damage, of the same method on the same images, with the 95 % bootstrap interval of its mean."
    return "\n".join([*lines, "", f"{rows[0]['n']} images. {note}"]) + "\n"


def _change(row: dict[str, Any], key: str) -> str:
    if "change" not in row:
        return "–"
    digits, change = MEASURES[key][1], row["change"][key]
    text = f"{change['mean']:+.{digits}f}"
    if change["interval"] is None:
        return text
    low, high = change["interval"]
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


def draw_correction(correction: Correction, images: EvalImages) -> "Figure":
    """A block of lines a photograph, a line a method, a column a damage; the original opens each block."""
    damages = list(dict.fromkeys(damage for damage, _ in correction.pictures))
    methods = list(dict.fromkeys(method for _, method in correction.pictures))
    count = len(correction.pictures[damages[0], methods[0]])
    lines = []
    for i in range(count):
        original = images[i][None]
        for place, method in enumerate(methods):
            pictures = [correction.pictures[damage, method][i] for damage in damages]
            scores = [pixel.psnr(from_uint8(picture)[None], original).item() for picture in pictures]
            first = Picture(None if place else to_uint8(original)[0])
            shown = [Picture(p, f"{score:.1f} dB") for p, score in zip(pictures, scores, strict=True)]
            lines.append(Line(method.replace("_", " "), [first, *shown], opens=place == 0 < i))
    return draw_panels(["original", *(damage.label for damage in damages)], lines)
