"""Damaged guides through every method: what each loses against its own undamaged result, with paired intervals (Fig. 5)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import NO_DAMAGE, Damage
from hybrid_tokenizer.evaluation.controls import HybridRow
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.measures import Measure, metrics_named
from hybrid_tokenizer.evaluation.pictures import Line, Picture, draw_panels, write_figure
from hybrid_tokenizer.evaluation.rows import VARIANT, variant_row
from hybrid_tokenizer.evaluation.studies.damage import bend, replace_tokens, turn
from hybrid_tokenizer.evaluation.super_resolution import HOW, LEFT_OUT, enlarge, load_upscaler
from hybrid_tokenizer.evaluation.super_resolution import NAME as SUPER_RESOLUTION
from hybrid_tokenizer.evaluation.tables import METHOD, Column, difference_text, to_markdown
from hybrid_tokenizer.evaluation.token_cache import TokenCache
from hybrid_tokenizer.hybrid import HybridTokenizer, image_generators
from hybrid_tokenizer.images import from_uint8, resize_bicubic, to_uint8
from hybrid_tokenizer.metrics import pixel
from hybrid_tokenizer.tokens import HybridTokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BICUBIC, HYBRID = "bicubic", "hybrid"
MEASURES = metrics_named(
    "psnr", "ssim", "effnet_lite2_distance", "squeezenet_distance", "effnet_lite0_distance (trained on)"
)
CHANGES = metrics_named("psnr", "effnet_lite2_distance", "squeezenet_distance")
"""Whose change by the damage the table shows; correction.json has all of them."""

Render = Callable[
    [Float[Tensor, "b 3 gh gw"], HybridTokens, Sequence[torch.Generator], tuple[int, int]], Float[Tensor, "b 3 h w"]
]
"""Guide images, perhaps damaged, the undamaged tokens, a generator per image, and a size -> images of that size."""


class Correction(NamedTuple):
    """The table, and the first decoded images by (damage, method)."""

    rows: list[dict[str, Any]]
    pictures: dict[tuple[Damage, str], UInt8[Tensor, "k 3 r r"]]


class DamagedRow:
    """One damage and one method. All rows decode the same tokens, damaged or not.

    What is drawn for an image is a function of its undamaged tokens and the generator. So every damage gets the same
    diffusion noise, a larger share of tokens contains a smaller one, and a stronger bend is the same bend.
    """

    native_size = None

    def __init__(self, tokenizer: HybridTokenizer, tokens: TokenCache, damage: Damage, method: str, render: Render):
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.damage = damage
        self.render = render
        self.name = row_name(damage, method)
        self.compare_to = row_name(NO_DAMAGE, method)

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> HybridTokens:
        """The undamaged tokens."""
        semantic_indices, *guide_indices = self.tokens(images)
        return HybridTokens(semantic_indices, tuple(guide_indices), (images.shape[-2], images.shape[-1]))

    @torch.no_grad()
    def decode(
        self, tokens: HybridTokens, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 3 H W"]:
        """The damaged guide through the method."""
        indices = [tokens.semantic_indices, *tokens.guide_indices]
        noise = image_generators(indices, generator)  # first, so that undamaged images are those of the plain hybrid
        guide = damaged_guide(self.tokenizer, tokens, self.damage, image_generators(indices, generator))
        return self.render(guide, tokens, noise, size)

    def num_tokens(self, tokens: HybridTokens) -> Int[Tensor, "b"]:
        """The hybrid's."""
        return self.tokenizer.num_tokens(tokens)

    def bits(self, tokens: HybridTokens) -> Float[Tensor, "b"]:
        """The hybrid's."""
        return self.tokenizer.bits(tokens)


def row_name(damage: Damage, method: str) -> str:
    """Unique in a study."""
    return f"{method}, {damage.label}"


def renderers(
    tokenizer: HybridTokenizer, names: Sequence[str] | None, baselines: Mapping[str, str]
) -> dict[str, Render]:
    """The methods by name. None is bicubic, super_resolution if `baselines` names its weights, and hybrid."""
    if unknown := sorted(set(baselines) - {SUPER_RESOLUTION}):
        raise HybridTokenizerError(f"baselines {', '.join(unknown)} take no guide; give {SUPER_RESOLUTION} or nothing")
    if names is None:
        names = [BICUBIC, *baselines, HYBRID]
        if not baselines:
            tqdm.write(LEFT_OUT)
    if not names or len(set(names)) < len(names):
        raise HybridTokenizerError(f"methods={list(names)} must be one or more different names")
    return {name: _renderer(tokenizer, name, baselines) for name in names}


def _renderer(tokenizer: HybridTokenizer, name: str, baselines: Mapping[str, str]) -> Render:
    if name == BICUBIC:
        return lambda guide, tokens, noise, size: resize_bicubic(guide, size).clamp(-1, 1)
    if name == SUPER_RESOLUTION:
        if name not in baselines:
            raise HybridTokenizerError(f"{name} needs weights: {HOW} as baselines.{name}")
        upscaler = load_upscaler(baselines[name])
        return lambda guide, tokens, noise, size: enlarge(upscaler, guide, size)
    if name != HYBRID and not name.startswith(VARIANT):
        raise HybridTokenizerError(
            f"method {name!r} is unknown; use {BICUBIC}, {SUPER_RESOLUTION}, {HYBRID}, or a variant as in {VARIANT}s0.6"
        )
    row = HybridRow(tokenizer) if name == HYBRID else variant_row(tokenizer, name)
    if row.guide_scales is not None or row.search_steps != tokenizer.search_steps:
        raise HybridTokenizerError(
            f"method {name!r} changes the tokens, which all methods share; give decode options only, as in {VARIANT}s0.6"
        )

    def diffuse(
        guide: Float[Tensor, "b 3 gh gw"],
        tokens: HybridTokens,
        noise: Sequence[torch.Generator],
        size: tuple[int, int],
    ) -> Float[Tensor, "b 3 h w"]:
        embeds = tokenizer.semantic.decode(tokens.semantic_indices)
        return tokenizer.render(guide, embeds, size, list(noise), **row.options)

    return diffuse


@torch.no_grad()
def damaged_guide(
    tokenizer: HybridTokenizer, tokens: HybridTokens, damage: Damage, generators: Sequence[torch.Generator]
) -> Float[Tensor, "b 3 gh gw"]:
    """The guide images of damaged tokens, or damaged guide images. One generator per image."""
    indices = tokens.guide_indices
    if damage.kind == "tokens":
        indices = replace_tokens(indices, damage.amount, tokenizer.guide.codebook_size, generators)
    guide = tokenizer.decode_guide(indices, tokens.image_size)
    if damage.kind == "elastic":
        return bend(guide, damage.amount, generators)
    return turn(guide, damage.amount) if damage.kind == "rotation" else guide


def measure_correction(
    tokenizer: HybridTokenizer,
    images: EvalImages,
    damages: Sequence[Damage],
    methods: Mapping[str, Render],
    measures: Sequence[Measure] = MEASURES,
    *,
    seed: int = 0,
    **options: Any,
) -> Correction:
    """A row per damage and method, against the undamaged photographs. `damages` must hold `NO_DAMAGE`.

    Options as for `evaluate_rows`.
    """

    def encode(images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        tokens = tokenizer.encode(images)
        return tokens.semantic_indices, *tokens.guide_indices

    cache = TokenCache(encode)
    cells = [(damage, method) for damage in damages for method in methods]
    rows = [DamagedRow(tokenizer, cache, damage, method, methods[method]) for damage, method in cells]
    evaluations = evaluate_rows(rows, images, measures, seeds=[seed], device=tokenizer.device, **options)
    table = []
    for (damage, method), done in zip(cells, evaluations, strict=True):
        entry = {"damage": damage.label, "kind": damage.kind, "amount": damage.amount, "method": method}
        entry |= {measure.name: done.row[measure.name] for measure in measures}
        entry |= {"n": done.row["n"], "intervals": done.row["intervals"]}
        table.append(entry | ({"change": done.row.get("differences", {})} if damage != NO_DAMAGE else {}))
    return Correction(table, {cell: done.pictures for cell, done in zip(cells, evaluations, strict=True)})


def write_correction(folder: Path, correction: Correction, images: EvalImages, provenance: dict[str, Any]) -> str:
    """correction.json, correction.md, correction.png and correction.pdf. Returns the Markdown."""
    table = correction_markdown(correction.rows)
    write_atomic(folder / "correction.md", table.encode())
    if any(len(pictures) for pictures in correction.pictures.values()):
        write_figure(folder / "correction", draw_correction(correction, images))
    write_json(folder / "correction.json", {"rows": correction.rows, "provenance": provenance})
    return table


def correction_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line per damage and method."""
    measured = [metric for metric in MEASURES if metric.name in rows[0]]
    changed = [metric for metric in CHANGES if metric.name in rows[0]]
    columns = [Column("damage", "damage"), METHOD, *(metric.column for metric in measured)]
    columns += [Column(f"change {metric.name}", f"Δ {metric.heading[:-2]}", metric.column.spec) for metric in changed]
    lines = [
        row
        | {
            f"change {metric.name}": difference_text(row.get("change", {}).get(metric.name), metric.column.spec)
            for metric in changed
        }
        for row in rows
    ]
    note = "Δ: the change by the damage, of the same method on the same images, with the 95 % bootstrap interval of its mean."
    return to_markdown(lines, columns) + f"\n{rows[0]['n']} images. {note}\n"


def draw_correction(correction: Correction, images: EvalImages) -> "Figure":
    """A block of lines per photograph, a line per method, a column per damage. The original opens each block."""
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
