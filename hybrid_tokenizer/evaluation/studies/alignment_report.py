"""alignment.json, and the tables and the picture made from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hybrid_tokenizer.checkpoints.files import read_json, write_atomic, write_json
from hybrid_tokenizer.evaluation.pictures import write_png
from hybrid_tokenizer.evaluation.tables import to_csv, to_latex, to_markdown


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its scores and shares as columns of their own, which the tables take."""
    columns = row["scores"] | {f"{kind}_share": share for kind, share in row["shares"].items()}
    return {key: value for key, value in row.items() if key not in ("scores", "shares", "win_rates")} | columns


def write_alignment(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    provenance: dict[str, Any],
    per_image: Sequence[dict[str, Any]],
    grid: Image.Image | None,
) -> str:
    """alignment.json, per_image.jsonl, alignment.png where there are pictures, and the tables. Returns the Markdown."""
    lines = "".join(json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n" for entry in per_image)
    write_atomic(folder / "per_image.jsonl", lines.encode())
    if grid is not None:
        write_png(folder / "alignment.png", grid)
    write_json(folder / "alignment.json", {"rows": list(rows), "provenance": provenance})
    return write_tables(folder)


def write_tables(folder: Path) -> str:
    """alignment.md, alignment.tex and alignment.csv from alignment.json alone. Returns the Markdown."""
    report = read_json(folder / "alignment.json")
    rows = [flat_row(row) for row in report["rows"]]
    markdown = to_markdown(rows) + "\n" + "".join(f"- {line}\n" for line in notes(report))
    for name, text in (("md", markdown), ("tex", to_latex(rows)), ("csv", to_csv(rows))):
        write_atomic(folder / f"alignment.{name}", text.encode())
    return markdown


def notes(report: dict[str, Any]) -> list[str]:
    """What the columns mean, and the scores that are not there."""
    by = report["rows"][0]["win_rate_by"]
    lines = [f"win rate: the share of comparisons with the other rows, on the same image and caption, won by `{by}`"]
    sharing = [row["method"] for row in report["rows"] if row["shares"]]
    if sharing:
        lines.append(f"shares add up to 1 over {', '.join(sharing)}; best: images on which `{by}` is the highest")
    return lines + [
        f"{name} is unavailable: {reason}" for name, reason in report["provenance"]["unavailable_scores"].items()
    ]
