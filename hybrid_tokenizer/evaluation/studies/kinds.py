"""The paper's Table 1, kinds of tokenizers: token counts of the registry's models, and what `tiny` measured for each kind.

`tiny`'s guide stands for the tokenizers of a VQ-VAE, its semantic tokens for those that decode by diffusion from pure noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hybrid_tokenizer.baselines.registry import BASELINES
from hybrid_tokenizer.evaluation.tables import Column, to_markdown

SIDE = 256
"""Of the images whose tokens are counted."""
DAMAGE = "10 % of tokens"
SCORE = "probe_score"
Rows = Sequence[Mapping[str, Any]]


class Kind(NamedTuple):
    """A line of the table: what the paper says of it, and the rows of `tiny` that show it."""

    name: str
    decodes_by: str | None
    """What decodes in the models of the registry that are of this kind; None: ours."""
    semantics: str
    flexible: str
    similar: str
    row: str
    method: str | None
    """Of the study of damaged guides."""


KINDS = (
    Kind("VQ-VAE", "network", "pixel level", "no", "yes", "guide_only", "bicubic"),
    Kind("diffusion", "diffusion", "high level", "yes", "no", "semantic_only", None),
    Kind("ours", None, "high and pixel level", "yes", "yes", "hybrid", "hybrid"),
)
COLUMNS = (
    Column("kind", "tokenizer"),
    Column("tokens", f"tokens at {SIDE} px"),
    Column("semantics", "token semantics: the paper"),
    Column("score", "caption score ↑", ".3f"),
    Column("flexible", "flexibility: the paper"),
    Column("loss", f"PSNR lost to {DAMAGE}, dB ↓", ".2f"),
    Column("similar", "similarity: the paper"),
    Column("psnr", "PSNR ↑", ".2f"),
)


def token_range(decodes_by: str) -> str:
    """The fewest and the most tokens that the registry's models of a kind spend on an image."""
    counts = [
        count
        for baseline in BASELINES.values()
        if baseline.family.decodes_by == decodes_by
        for count in ([baseline.tokens_of(SIDE)] if baseline.varying is None else baseline.varying)
    ]
    return f"{min(counts)} to {max(counts)}"


def kinds_of(recon: Rows, alignment: Rows, correction: Rows) -> list[dict[str, Any]]:
    """The lines, from the rows of recon.json, alignment.json and correction.json. What was not measured is left out."""
    lines = []
    for kind in KINDS:
        measured = next((row for row in recon if row["method"] == kind.row), {})
        scored = next((row for row in alignment if row["method"] == kind.row), {})
        damaged = next((row for row in correction if (row["method"], row["damage"]) == (kind.method, DAMAGE)), {})
        change = damaged.get("change", {}).get("psnr")
        lines.append(
            {
                "kind": kind.name,
                "tokens": token_range(kind.decodes_by) if kind.decodes_by else f"{measured['num_tokens']:.0f}",
                "semantics": kind.semantics,
                "score": scored.get("scores", {}).get(SCORE),
                "flexible": kind.flexible,
                "loss": None if change is None else -change["mean"],
                "similar": kind.similar,
                "psnr": measured.get("psnr"),
            }
        )
    return lines


def kinds_markdown(recon: Rows, alignment: Rows, correction: Rows) -> str:
    """Table 1, with a note on where each number comes from."""
    rows = ", ".join(f"`{kind.row}` for {kind.name}" for kind in KINDS)
    return to_markdown(kinds_of(recon, alignment, correction), COLUMNS) + (
        f"\nTokens: the fewest and the most of the registry's models of a kind; ours is `tiny`. Numbers: rows of `tiny`, {rows}. "
        f"Caption score: `{SCORE}`. Lost PSNR: the guide decoded with and without replaced tokens.\n"
    )
