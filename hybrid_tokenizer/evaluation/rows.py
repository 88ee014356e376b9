"""Rows of a table by name: the controls, `hybrid`, their variants such as `hybrid@84,s0.4`, and baselines.

A variant is a row's name, `@`, and parts joined by commas:

    84                                            guide tokens of a nested guide at the native size
    search8                                       gradient steps of the encoder's search
    ddim_inversion  add_noise  linear_estimate    start
    s0.4  n50  g3  eta0.5  fixed2                 strength, steps, guidance scale, eta, fixed-point iterations
    generation  null                              condition of the inversion
    ddim  lcm                                     sampler
    paper  balanced                               `diffusion.config.DECODE_PRESETS`, alone

`hybrid` takes them all. `guide_only` and `guide_of_hybrid` do not decode through diffusion and take the first two.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Unpack

from tqdm import tqdm

from hybrid_tokenizer.baselines.loading import load_baseline, remedy
from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.devices import rank_and_world_size
from hybrid_tokenizer.diffusion import DecodeOverrides
from hybrid_tokenizer.diffusion.config import DECODE_PRESETS, INVERSION_CONDITIONS, SAMPLERS, STARTS
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.controls import FoundGuides, GuideOfHybrid, GuideOnly, HybridRow, control_rows
from hybrid_tokenizer.evaluation.super_resolution import HOW, LEFT_OUT, NAME, SuperResolution, load_upscaler
from hybrid_tokenizer.hybrid import HybridTokenizer
from hybrid_tokenizer.protocol import ImageTokenizer

HYBRID, GUIDE_ONLY, GUIDE_OF_HYBRID = "hybrid", "guide_only", "guide_of_hybrid"
VARIANT = f"{HYBRID}@"
SEARCH = "search"
NUMBERS: dict[str, tuple[str, type]] = {
    "s": ("strength", float),
    "n": ("num_inference_steps", int),
    "g": ("guidance_scale", float),
    "eta": ("eta", float),
    "fixed": ("num_fixed_point_iterations", int),
    SEARCH: ("search_steps", int),
}
"""What stands before a number in a part -> the option and its type."""
WORDS = {"start": STARTS, "inversion_condition": INVERSION_CONDITIONS, "sampler": SAMPLERS}
"""An option whose values are parts themselves -> its values."""
OF_THE_GUIDE = {"guide_scales", "search_steps"}
EXAMPLES = (
    "use a number of guide tokens, search8 (steps of search), s0.4 (strength), n50 (steps), g3 (guidance), eta0.5, fixed2 "
    f"(fixed-point iterations), {', '.join(word for words in WORDS.values() for word in words)}, joined by commas; or {' or '.join(DECODE_PRESETS)} alone"
)


def rows_by_name(
    hybrid: HybridTokenizer,
    names: list[str] | None = None,
    baselines: Mapping[str, str] | None = None,
    say: Callable[[str], None] = tqdm.write,
    extra: Sequence[str] = (),
) -> list[ImageTokenizer]:
    """The rows called `names`, in that order.

    None is every control, the hybrid, its `default_variants`, the codec and all of `baselines`.

    baselines: name in `registry.BASELINES` -> file, folder, hub id, or `hub`; `super_resolution` -> file or `package`.
    say: is called with a line for each control that None leaves out, in the first process of a run.
    extra: further rows, after those of `names`.

    Raises on a name that is unknown or given twice, and on a baseline without the place of its weights.
    """
    baselines = dict(baselines or {})
    weighted = (NAME, *BASELINES)
    if unknown := sorted(set(baselines) - set(weighted)):
        raise HybridTokenizerError(f"baselines {', '.join(unknown)} are unknown; use some of {', '.join(weighted)}")
    if names is None and NAME not in baselines and rank_and_world_size()[0] == 0:
        say(LEFT_OUT)
    found = FoundGuides(hybrid)
    known = {row.name: row for row in control_rows(hybrid, found=found)}
    if names is None:
        names = [*known, *baselines]
        after = names.index(HYBRID) + 1
        names[after:after] = default_variants(hybrid)
    names = [*names, *extra]
    for name in names:
        if name in weighted and name not in baselines:
            given = f"PATH, {remedy(BASELINES[name])}" if name in BASELINES else f"PATH: {HOW}"
            raise HybridTokenizerError(f"row {name!r} needs its weights: add +baselines.{name}={given}")
        if name not in known and name not in weighted and not is_variant(name):
            raise HybridTokenizerError(
                f"row {name!r} is unknown; use {', '.join(known)}, a variant as in hybrid@s0.4 or hybrid@search8, "
                f"or a baseline: {', '.join(weighted)}"
            )
    rows: list[ImageTokenizer] = []
    for name in names:
        if name == NAME:
            rows.append(SuperResolution(hybrid, load_upscaler(baselines[name]), found=found))
        elif name in BASELINES:
            rows.append(load_baseline(name, baselines[name]))
        else:
            rows.append(known[name] if name in known else variant_row(hybrid, name, found))
    if not rows or len({row.name for row in rows}) < len(rows):
        raise HybridTokenizerError(f"tokenizers={names} must be one or more different names; known: {', '.join(known)}")
    return rows


def default_variants(hybrid: HybridTokenizer) -> list[str]:
    """The variants of `hybrid` that its table shows without being asked, by name.

    A decoder that starts from a linear estimate also stands there as the paper decodes: by DDIM inversion under the
    generation embeddings, at the decoder's own strength and steps. Stable Diffusion stands there under each of its named
    options that are not its defaults.
    """
    config = hybrid.diffusion.config
    if config.decode_defaults.start == "linear_estimate":
        return [variant_name(hybrid, HYBRID, start="ddim_inversion", inversion_condition="generation")]
    if config.vae_class != "AutoencoderKL":
        return []
    return [f"{VARIANT}{name}" for name, options in DECODE_PRESETS.items() if options != config.decode_defaults]


def hybrid_row(
    hybrid: HybridTokenizer,
    *,
    guide_scales: int | None = None,
    search_steps: int | None = None,
    found: FoundGuides | None = None,
    **options: Unpack[DecodeOverrides],
) -> HybridRow:
    """`hybrid`, or the variant whose name says what differs."""
    name = variant_name(hybrid, HYBRID, guide_scales=guide_scales, search_steps=search_steps, **options)
    return HybridRow(hybrid, name, guide_scales=guide_scales, search_steps=search_steps, found=found, **options)


def is_variant(name: str) -> bool:
    """Whether `variant_row` reads `name`, up to its parts."""
    return name.partition("@")[0] in (HYBRID, GUIDE_ONLY, GUIDE_OF_HYBRID)


def variant_row(hybrid: HybridTokenizer, name: str, found: FoundGuides | None = None) -> HybridRow:
    """The row of a variant's name, whose parts may stand in any order."""
    base, at, parts = name.partition("@")
    if base == HYBRID and parts in DECODE_PRESETS:
        return HybridRow(hybrid, name, found=found, **vars(DECODE_PRESETS[parts]))
    settings = read_parts(hybrid, name, parts) if at else {}
    if base == HYBRID:
        return hybrid_row(hybrid, found=found, **settings)
    if extra := sorted(set(settings) - OF_THE_GUIDE):
        raise HybridTokenizerError(
            f"row {name!r}: {base} does not decode through diffusion and has no {', '.join(extra)}; use a number of guide "
            "tokens or search8"
        )
    canonical = variant_name(hybrid, base, **settings)
    if base == GUIDE_ONLY:
        return GuideOnly(hybrid, canonical, **settings)
    if not settings.get("search_steps", hybrid.search_steps):
        raise HybridTokenizerError(
            f"row {name!r}: without a search {GUIDE_OF_HYBRID} is {GUIDE_ONLY}; use {GUIDE_ONLY}, or {GUIDE_OF_HYBRID}@search8"
        )
    return GuideOfHybrid(hybrid, canonical, found=found, **settings)


def variant_name(
    hybrid: HybridTokenizer,
    base: str,
    *,
    guide_scales: int | None = None,
    search_steps: int | None = None,
    **options: Unpack[DecodeOverrides],
) -> str:
    """`base` and a part for everything that is given, always in the same order."""
    parts = []
    if guide_scales is not None:
        totals = guide_token_totals(hybrid)
        if not 1 <= guide_scales <= len(totals):
            raise HybridTokenizerError(
                f"guide_scales={guide_scales} must lie in 1..{len(totals)}, the scales of this guide"
            )
        parts.append(str(totals[guide_scales - 1]))
    prefixes = {option: prefix for prefix, (option, _) in NUMBERS.items()}
    given = {"search_steps": search_steps, **options}
    for option in ("search_steps", *DecodeOverrides.__annotations__):
        if (value := given.get(option)) is not None:
            parts.append(f"{prefixes[option]}{value:g}" if option in prefixes else str(value))
    return f"{base}@{','.join(parts)}" if parts else base


def read_parts(hybrid: HybridTokenizer, name: str, parts: str) -> dict[str, Any]:
    """Keyword arguments of `hybrid_row` from the parts of the row `name`."""
    settings: dict[str, Any] = {}
    for part in parts.split(","):
        option, value = read_part(hybrid, name, part)
        if option in settings:
            raise HybridTokenizerError(f"row {name!r} gives {option} twice; leave one of the parts out")
        settings[option] = value
    return settings


def read_part(hybrid: HybridTokenizer, name: str, part: str) -> tuple[str, Any]:
    """The option that `part` of the row `name` sets, and its value."""
    for option, words in WORDS.items():
        if part in words:
            return option, part
    if part.isdecimal():
        return "guide_scales", scales_of(hybrid, int(part))
    prefix, number = re.fullmatch(r"([a-z]*)(.*)", part, re.DOTALL).groups()
    if prefix not in NUMBERS or not re.fullmatch(r"\d+(\.\d+)?", number):
        raise HybridTokenizerError(f"row {name!r}: {part!r} is no variant; {EXAMPLES}")
    option, kind = NUMBERS[prefix]
    if kind is int and "." in number:
        raise HybridTokenizerError(f"row {name!r}: {part!r} must be a whole number of steps, as in {prefix}8")
    return option, kind(number)


def scales_of(hybrid: HybridTokenizer, num_guide_tokens: int) -> int:
    """The number of scales of the guide that make `num_guide_tokens` at the native size."""
    totals = guide_token_totals(hybrid)
    if num_guide_tokens not in totals:
        raise HybridTokenizerError(
            f"{num_guide_tokens} guide tokens are no prefix of this guide; it has {', '.join(map(str, totals))}"
        )
    return totals.index(num_guide_tokens) + 1


def guide_token_totals(hybrid: HybridTokenizer) -> list[int]:
    """Guide tokens at the native size with one scale, two scales, and so on."""
    sizes = hybrid.guide.guide_scale_sizes((hybrid.native_size, hybrid.native_size))
    return list(accumulate(height * width for height, width in sizes))
