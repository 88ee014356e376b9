"""Rows of an evaluation to JSON, Markdown, LaTeX, CSV and a picture grid, each file written atomically."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hybrid_tokenizer.checkpoints.files import read_json, write_atomic, write_json
from hybrid_tokenizer.evaluation.pictures import write_png

COLUMNS = {  # key of a row -> heading, digits after the point; keys that are not here are no columns
    "psnr": ("PSNR ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "ms_ssim": ("MS-SSIM ↑", 3),
    "ssim_paper_compat": ("SSIM, paper's ↑", 3),
    "effnet_lite2_distance": ("EffNet-lite2 ↓", 3),
    "haarpsi": ("HaarPSI ↑", 3),
    "mdsi": ("MDSI ↓", 3),
    "high_frequency_energy": ("HF energy, 1 is right", 3),
    "effnet_lite0_distance (trained on)": ("EffNet-lite0 (trained on) ↓", 3),
    "lpips_alex": ("LPIPS-Alex ↓", 3),
    "lpips_vgg": ("LPIPS-VGG ↓", 3),
    "clip_i": ("CLIP-I ↑", 3),
    "dino_distance": ("DINO distance ↓", 3),
    "rfid": ("rFID ↓", 2),
    "kid": ("KID ↓", 4),
    "published_psnr": ("PSNR, the paper's", 2),
    "published_ssim": ("SSIM, the paper's", 3),
    "pickscore": ("PickScore ↑", 2),
    "image_reward": ("ImageReward ↑", 3),
    "hps_v2": ("HPSv2 ↑", 4),
    "hps_v21": ("HPSv2.1 ↑", 4),
    "clip_score": ("CLIPScore ↑", 4),
    "probe_score": ("probe score ↑", 4),
    "win_rate": ("win rate ↑", 3),
    "best_share": ("best share ↑", 3),
    "pickscore_share": ("PickScore share ↑", 3),
    "published_image_reward": ("ImageReward, the paper's", 2),
    "published_pickscore_share": ("PickScore, the paper's", 2),
    "published_hps_v2": ("HPSv2, the paper's", 2),
    "num_tokens": ("tokens", 0),
    "bits": ("bits", 0),
    "seconds_per_image": ("s/image", 3),
    "n": ("n", 0),
}
COMPARED = ("psnr", "ssim", "effnet_lite2_distance", "haarpsi", "pickscore", "image_reward", "hps_v2", "hps_v21", "clip_score", "probe_score")  # fmt: skip
"""Paired differences that the Markdown shows; recon.json has all of them."""
MISSING = "–"
FLAG = " ≠"
"""Behind a published value that the measured one is over 10 % away from."""


def table_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that at least one row has a value for, in the order of `COLUMNS`."""
    return [key for key in COLUMNS if any(cell(row, key) != MISSING for row in rows)]


def cell(row: dict[str, Any], key: str) -> str:
    """One value as text; `∞` for an infinite one, a dash where there is none."""
    value = row.get(key)
    if value is None:
        return "∞" if str(row.get(f"{key}_note", "")).startswith("infinite") else MISSING
    flag = FLAG if key in row.get("published_differs", ()) else ""
    return f"{value:.{COLUMNS[key][1]}f}{flag}"


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, the paired differences, and the reasons where values are missing or were taken at another size."""
    keys = table_columns(rows)
    table = [["method", *(COLUMNS[key][0] for key in keys)]]
    table += [[row["method"], *(cell(row, key) for key in keys)] for row in rows]
    text = _markdown_table(table)
    references = dict.fromkeys(row["difference_to"] for row in rows if row.get("differences"))
    for reference in references:
        compared = [row for row in rows if row.get("differences") and row["difference_to"] == reference]
        keys = [key for key in COMPARED if any(key in row["differences"] for row in compared)]
        table = [["method", *(COLUMNS[key][0] for key in keys)]]
        table += [
            [row["method"], *(_difference(row["differences"].get(key), max(3, COLUMNS[key][1])) for key in keys)]
            for row in compared
        ]
        text += f"\nMinus `{reference}` on the same images, with the 95 % bootstrap interval of the mean:\n\n"
        text += _markdown_table(table)
    noted: dict[str, list[str]] = {}
    for row in rows:
        for note in row_notes(row):
            noted.setdefault(note, []).append(row["method"])
    lines = [
        f"- {'all rows' if len(methods) == len(rows) else ', '.join(methods)}: {note}\n"
        for note, methods in noted.items()
    ]
    return text + ("\n" + "".join(lines) if lines else "")


def row_notes(row: dict[str, Any]) -> list[str]:
    """What a row says about its own values."""
    notes = [f"{key.removesuffix('_note')} {value}" for key, value in row.items() if key.endswith("_note")]
    return notes + ([row["resized"]] if "resized" in row else [])


def to_latex(rows: Sequence[dict[str, Any]]) -> str:
    """A booktabs tabular."""
    keys = table_columns(rows)
    lines = [
        r"\begin{tabular}{l" + "r" * len(keys) + "}",
        r"\toprule",
        " & ".join(["method", *(_latex(COLUMNS[key][0]) for key in keys)]) + r" \\",
        r"\midrule",
        *(" & ".join([_latex(row["method"]), *(_latex(cell(row, key)) for key in keys)]) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Full precision, each interval as two columns; an empty field is a missing value."""
    keys = table_columns(rows)
    bounded = [key for key in keys if any((row.get("intervals") or {}).get(key) for row in rows)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", *keys, *(f"{key} {end}" for key in bounded for end in ("low", "high"))])
    for row in rows:
        intervals = row.get("intervals") or {}
        ends = [end for key in bounded for end in (intervals.get(key) or ("", ""))]
        writer.writerow([row["method"], *("" if row.get(key) is None else row[key] for key in keys), *ends])
    return buffer.getvalue()


def write_report(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    provenance: dict[str, Any],
    per_image: Sequence[dict[str, Any]],
    grid: Image.Image,
) -> str:
    """recon.json, per_image.jsonl, recon.png, and the tables recon.md, recon.tex and recon.csv made from recon.json.

    Returns the Markdown table.
    """
    lines = "".join(json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n" for entry in per_image)
    write_atomic(folder / "per_image.jsonl", lines.encode())
    write_png(folder / "recon.png", grid)
    write_json(folder / "recon.json", {"rows": list(rows), "provenance": provenance})
    return write_tables(folder)


def write_tables(folder: Path) -> str:
    """recon.md, recon.tex and recon.csv from recon.json alone. Returns the Markdown table."""
    rows = read_json(folder / "recon.json")["rows"]
    for name, text in (("recon.md", to_markdown(rows)), ("recon.tex", to_latex(rows)), ("recon.csv", to_csv(rows))):
        write_atomic(folder / name, text.encode())
    return to_markdown(rows)


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "| " + " | ".join(f"{text:<{w}}" if i == 0 else f"{text:>{w}}" for i, (text, w) in enumerate(zip(line, widths, strict=True))) + " |"
        for line in lines
    ]  # fmt: skip
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([padded[0], rule, *padded[1:]]) + "\n"


def _difference(entry: dict[str, Any] | None, digits: int) -> str:
    if entry is None:
        return MISSING
    interval = entry["interval"]
    bounds = "" if interval is None else f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    return f"{entry['mean']:+.{digits}f}{bounds}"


def _latex(text: str) -> str:
    for symbol, command in (
        ("_", r"\_"), ("%", r"\%"), ("↑", r"$\uparrow$"), ("↓", r"$\downarrow$"), ("∞", r"$\infty$"), (MISSING, "--"),
    ):  # fmt: skip
        text = text.replace(symbol, command)
    return text
