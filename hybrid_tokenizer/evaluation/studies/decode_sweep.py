"""Which decode options to recommend: start x strength x steps x guidance over a folder of images.

The recommendation uses PSNR and `effnet_lite1_distance` only. The decoder was trained on lite0's features, so lite0 would
favour what it was trained for. The measures that validate the preset are kept out of the choice: three are not computed
here, and the distance of SqueezeNet and high-frequency energy are shown but not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import write_atomic, write_json
from hybrid_tokenizer.diffusion import DecodeOptions, DecodeOverrides
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import BranchTokens, GuideOfHybrid, HybridRow
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.loop import evaluate_rows
from hybrid_tokenizer.evaluation.measures import LITE1, SQUEEZENET, Measure, metrics_named
from hybrid_tokenizer.evaluation.plots import draw_sweep
from hybrid_tokenizer.evaluation.tables import Column, to_markdown
from hybrid_tokenizer.evaluation.token_cache import TokenCache
from hybrid_tokenizer.hybrid import HybridTokenizer

DISTANCE = LITE1.name
CHOSEN_BY = ("psnr", DISTANCE)
NEVER_READ = ("effnet_lite2_distance", "squeezenet_distance", "haarpsi", "mdsi", "high_frequency_energy")
OPTIONS = ("start", "inversion_condition", "strength", "num_inference_steps", "guidance_scale")
COLUMNS = (
    Column("method", "setting"),
    Column("psnr", "PSNR ↑", ".3f"),
    Column("ssim", "SSIM ↑", ".3f"),
    Column(DISTANCE, LITE1.heading, ".3f"),
    SQUEEZENET.column,
    Column("high_frequency_energy", "HF energy, 1 is right", ".3f"),
    Column("seconds_per_image", "s/image", ".3f"),
)
MEASURES = (*metrics_named("psnr", "ssim"), LITE1, *metrics_named("squeezenet_distance", "high_frequency_energy"))


class SweepRow(HybridRow):
    """One setting. All rows of a sweep decode the same tokens, those of the one-pass encoder."""

    def __init__(self, hybrid: HybridTokenizer, name: str, tokens: TokenCache, **options: Unpack[DecodeOverrides]):
        super().__init__(hybrid, name, **options)
        self.tokens = tokens

    def encode(self, images: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None) -> BranchTokens:
        """From the cache."""
        semantic_indices, *guide_indices = self.tokens(images)
        return BranchTokens(semantic_indices, tuple(guide_indices), (images.shape[-2], images.shape[-1]))


class SweepGuide(SweepRow):
    """The guide of these tokens, enlarged bicubically."""

    decode = GuideOfHybrid.decode


def sweep(
    tokenizer: HybridTokenizer,
    images: EvalImages,
    settings: Sequence[DecodeOptions],
    measures: Sequence[Measure] = MEASURES,
    *,
    batch_size: int = 8,
    **options: Any,
) -> list[dict[str, Any]]:
    """A row for the decoded guide alone, one for strength 0, and one per setting. Options as for `evaluate_rows`."""

    def encode(images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        # one pass, since tokens that a search optimised under one setting would favour it
        tokens = tokenizer.encode(images, search_steps=0)
        return tokens.semantic_indices, *tokens.guide_indices

    cache = TokenCache(encode)
    for batch in images.own_batches(batch_size, tokenizer.device):
        cache(batch.references)  # before the first row, whose seconds would otherwise include it
    named = {setting_name(setting): setting for setting in settings}
    rows = [
        SweepGuide(tokenizer, "guide_only", cache),
        SweepRow(tokenizer, "strength 0", cache, strength=0.0),
        *(SweepRow(tokenizer, name, cache, **options_of(setting)) for name, setting in named.items()),
    ]
    evaluations = evaluate_rows(rows, images, measures, batch_size=batch_size, device=tokenizer.device, **options)
    described = {name: options_of(setting) | {"family": family_of(setting)} for name, setting in named.items()}
    return [done.row | described.get(done.row["method"], {}) for done in evaluations]


def options_of(setting: DecodeOptions) -> dict[str, Any]:
    """The swept options by name."""
    return {name: getattr(setting, name) for name in OPTIONS}


def setting_name(setting: DecodeOptions) -> str:
    """Short and unique in a sweep."""
    return f"{_start_name(setting)} s{setting.strength:g} n{setting.num_inference_steps} g{setting.guidance_scale:g}"


def family_of(setting: DecodeOptions) -> str:
    """Settings of one family differ in strength alone."""
    return f"{_start_name(setting)}, n{setting.num_inference_steps}, g{setting.guidance_scale:g}"


def recommend(rows: Sequence[dict[str, Any]], psnr_margin: float) -> dict[str, Any]:
    """The setting with the smallest distance among those within `psnr_margin` dB of the best PSNR.

    Between equal distances the smaller share of U-Net steps wins. Rows that take no step are references, not candidates.
    """
    candidates = [row for row in rows if "start" in row and all(row[name] is not None for name in CHOSEN_BY)]
    if not candidates:
        raise HybridTokenizerError("no setting of the sweep has a finite PSNR and distance; sweep at least one")
    best = max(row["psnr"] for row in candidates)
    close = [row for row in candidates if row["psnr"] >= best - psnr_margin]
    return min(close, key=lambda row: (row[DISTANCE], row["num_inference_steps"] * row["strength"]))


def rule(psnr_margin: float) -> str:
    """`recommend` in words, for the record."""
    return (
        f"among the settings with at least one step whose mean PSNR is within {psnr_margin:g} dB of the best setting's, the "
        f"one with the smallest mean {DISTANCE}; ties go to fewer U-Net steps"
    )


def write_sweep(
    folder: Path, rows: Sequence[dict[str, Any]], psnr_margin: float, provenance: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """eval_decode.json, eval_decode.md and eval_decode.png. Returns the table and the recommended options."""
    chosen = recommend(rows, psnr_margin)
    recommended = {name: chosen[name] for name in OPTIONS}
    report = {
        "rows": list(rows),
        "recommended": recommended,
        "rule": rule(psnr_margin),
        "chosen_by": list(CHOSEN_BY),
        "never_read_by_the_choice": list(NEVER_READ),
        "provenance": provenance,
    }
    table = sweep_markdown(rows, chosen, psnr_margin)
    write_atomic(folder / "eval_decode.md", table.encode())
    write_atomic(folder / "eval_decode.png", draw_sweep(rows, chosen))
    write_json(folder / "eval_decode.json", report)
    return table, recommended


def sweep_markdown(rows: Sequence[dict[str, Any]], chosen: dict[str, Any], psnr_margin: float) -> str:
    """The references, then the settings by falling PSNR with the recommended one in bold."""
    references = [row for row in rows if "start" not in row]
    ranked = sorted((row for row in rows if "start" in row), key=lambda row: -(row["psnr"] or 0))
    shown = [row | {"method": f"**{row['method']}**"} if row is chosen else row for row in (*references, *ranked)]
    return to_markdown(shown, COLUMNS) + (
        f"\nRecommended: {chosen['method']}. Rule: {rule(psnr_margin)}.\n"
        f"{chosen['n']} images. s: strength, n: steps of the whole schedule, g: guidance scale. "
        "SqueezeNet's distance and high-frequency energy are shown and not used by the rule. Seconds are those of decoding.\n"
    )


def _start_name(setting: DecodeOptions) -> str:
    """The start, with the condition of the inversion where it is not the usual one."""
    usual = setting.start != "ddim_inversion" or setting.inversion_condition == "generation"
    return setting.start if usual else f"{setting.start} ({setting.inversion_condition})"
