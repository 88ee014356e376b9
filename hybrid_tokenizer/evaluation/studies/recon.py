"""The table of reconstructions (the paper's Table 2): recon.json, and the tables and pictures made from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hybrid_tokenizer.baselines.registry import BASELINES, FIXED
from hybrid_tokenizer.checkpoints.files import read_json, write_atomic, write_json
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.evaluation.measures import METRICS, WITH_WEIGHTS
from hybrid_tokenizer.evaluation.pictures import picture_grid, write_png
from hybrid_tokenizer.evaluation.plots import draw_rates
from hybrid_tokenizer.evaluation.published import published_values
from hybrid_tokenizer.evaluation.summary import COST, Evaluation
from hybrid_tokenizer.evaluation.tables import (
    METHOD,
    Column,
    cell,
    filled,
    report_markdown,
    write_json_lines,
    write_table,
)
from hybrid_tokenizer.images import to_uint8

COLUMNS = (
    *(measure.column for measure in (*METRICS, *WITH_WEIGHTS)),
    Column("compression_rate", "compression rate"),
    Column("published_psnr", "PSNR, the paper's", ".2f"),
    Column("published_ssim", "SSIM, the paper's", ".3f"),
    *COST,
)
COMPARED = tuple(
    metric.column._replace(spec=".3f")
    for metric in METRICS
    if metric.name in ("psnr", "ssim", "effnet_lite2_distance", "squeezenet_distance", "haarpsi")
)
"""The paired differences that the Markdown shows; recon.json has all of them."""


def write_recon(
    folder: Path, evaluations: Sequence[Evaluation], images: EvalImages, provenance: dict[str, Any], pictures: int
) -> str:
    """recon.json, per_image.jsonl, recon.png, recon_rd.png, and the tables recon.md, .tex and .csv made from recon.json.

    The picture grid shows the first `pictures` images. Returns the Markdown table.
    """
    rows = [done.row | published_values(done.row) | compression_of(done.row["method"]) for done in evaluations]
    write_json_lines(folder / "per_image.jsonl", [entry for done in evaluations for entry in done.per_image])
    shown = range(min(pictures, len(images)))
    columns = [("original", torch.stack([to_uint8(images[i]) for i in shown]))] if shown else []
    columns += [(done.row["method"], done.pictures) for done in evaluations] if shown else []
    captions = ["", *(f"{_text(row, 'psnr').replace('∞', 'inf')} dB, {_text(row, 'bits')} bits" for row in rows)]
    if columns:
        write_png(folder / "recon.png", picture_grid(columns, [images.names[i] for i in shown], captions))
    write_atomic(folder / "recon_rd.png", draw_rates(rows))
    write_json(folder / "recon.json", {"rows": rows, "provenance": provenance})
    return write_tables(folder)


def compression_of(method: str) -> dict[str, str]:
    """The paper's column for rows whose tokens it counts: other people's tokenizers, and the hybrid and its parts."""
    if method in BASELINES:
        return {"compression_rate": BASELINES[method].compression_rate}
    ours = method.partition("@")[0].startswith(("hybrid", "semantic_only", "guide_only", "guide_of_hybrid"))
    return {"compression_rate": FIXED} if ours else {}


def write_tables(folder: Path) -> str:
    """recon.md, recon.tex and recon.csv from recon.json alone. Returns the Markdown."""
    rows = read_json(folder / "recon.json")["rows"]
    return write_table(folder / "recon", rows, [METHOD, *filled(rows, COLUMNS)], recon_markdown(rows))


def recon_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table with the columns that the rows have values for, their paired differences and their notes."""
    return report_markdown(rows, [METHOD, *filled(rows, COLUMNS)], COMPARED)


def _text(row: dict[str, Any], key: str) -> str:
    return cell(row, next(column for column in COLUMNS if column.key == key))
