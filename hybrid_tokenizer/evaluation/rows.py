"""Rows of a table by name: the controls, `hybrid`, its variants such as `hybrid@84` or `hybrid@s0.4,n50`, and baselines."""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from tqdm import tqdm

from hybrid_tokenizer.baselines.registry import BASELINES, load_baseline
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import Branches, FoundGuides, HybridRow, control_rows, hybrid_row
from hybrid_tokenizer.evaluation.super_resolution import LEFT_OUT, NAME, SuperResolution, load_upscaler
from hybrid_tokenizer.protocol import ImageTokenizer

VARIANT = "hybrid@"
OPTIONS = {"s": ("strength", float), "n": ("num_inference_steps", int), "g": ("guidance_scale", float)}
STARTS = ("ddim_inversion", "add_noise")


def rows_by_name(
    hybrid: Branches,
    names: list[str] | None = None,
    baselines: Mapping[str, str] | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> list[ImageTokenizer]:
    """The rows called `names`, in that order; None is every control, the hybrid, the codec and all of `baselines`.

    baselines: name in `registry.BASELINES` -> file, folder, hub id, or `hub`; `super_resolution` -> file or `package`.
    say: told of a control that None leaves out. Raises on a name that is unknown or stands twice, and on a baseline whose
    weights nobody said where to find.
    """
    baselines = dict(baselines or {})
    weighted = (NAME, *BASELINES)
    if unknown := sorted(set(baselines) - set(weighted)):
        raise HybridTokenizerError(f"baselines {', '.join(unknown)} are unknown; use some of {', '.join(weighted)}")
    if names is None and NAME not in baselines:
        say(LEFT_OUT)
    found = FoundGuides(hybrid)
    known = {row.name: row for row in control_rows(hybrid, found=found)}
    names = [*known, *baselines] if names is None else names
    if not names or len(set(names)) < len(names):
        raise HybridTokenizerError(f"tokenizers={names} must be one or more different names; known: {', '.join(known)}")
    for name in names:
        if name in weighted and name not in baselines:
            raise HybridTokenizerError(
                f"row {name!r} needs its weights: give baselines.{name}=FILE, a folder, a hub id, or hub"
            )
        if name not in known and name not in weighted and not name.startswith(VARIANT):
            raise HybridTokenizerError(
                f"row {name!r} is unknown; use {', '.join(known)}, a variant as in hybrid@s0.4, "
                f"or a baseline: {', '.join(weighted)}"
            )
    rows = []
    for name in names:
        if name == NAME:
            rows.append(SuperResolution(hybrid, load_upscaler(baselines[name]), found=found))
        elif name in BASELINES:
            rows.append(load_baseline(name, baselines[name]))
        else:
            rows.append(known[name] if name in known else variant_row(hybrid, name, found))
    return rows


def variant_row(hybrid: Branches, name: str, found: FoundGuides | None = None) -> HybridRow:
    """A variant from its own name, the reverse of `hybrid_row`: parts joined by commas in any order."""
    options: dict[str, Any] = {}
    for part in name.removeprefix(VARIANT).split(","):
        if part in STARTS:
            options["start"] = part
        elif part.isdigit():
            options["guide_scales"] = scales_of(hybrid, int(part))
        elif part[:1] in OPTIONS and part[1:].replace(".", "", 1).isdigit():
            option, kind = OPTIONS[part[0]]
            if kind is int and "." in part:
                raise HybridTokenizerError(f"row {name!r}: {part!r} must be a whole number of steps, as in n50")
            options[option] = kind(part[1:])
        else:
            raise HybridTokenizerError(
                f"row {name!r}: {part!r} is no variant; use a number of guide tokens, s0.4 (strength), n50 (steps), "
                f"g3 (guidance), or {' or '.join(STARTS)}, joined by commas"
            )
    return hybrid_row(hybrid, found=found, **options)


def scales_of(hybrid: Branches, num_guide_tokens: int) -> int:
    """How many scales of the guide make so many tokens at the native size."""
    side = hybrid.native_size
    sizes = hybrid.guide.guide_scale_sizes((side, side))
    totals = list(accumulate(height * width for height, width in sizes))
    if num_guide_tokens not in totals:
        raise HybridTokenizerError(
            f"{num_guide_tokens} guide tokens are no prefix of this guide; it has {', '.join(map(str, totals))}"
        )
    return totals.index(num_guide_tokens) + 1
