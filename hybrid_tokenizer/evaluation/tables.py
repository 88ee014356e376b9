"""Tables of rows and columns as Markdown, LaTeX and CSV. The one table writer of the package."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from hybrid_tokenizer.checkpoints.files import write_atomic

MISSING = "–"
FLAG = " ≠"
"""Marks a published value that differs from the measured one by more than `published.TOLERANCE`."""
LATEX = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "∞": r"$\infty$", "≠": r"$\neq$", "Δ": r"$\Delta$", MISSING: "--"}

Row = Mapping[str, Any]


class Column(NamedTuple):
    """The values that rows have under `key`."""

    key: str
    heading: str
    spec: str | None = None
    """Format of a number, such as ".2f". Strings are shown as they are. None: text, aligned to the left."""


METHOD = Column("method", "method")


def to_markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table: a line per row, a dash where a row has no value."""
    return _tabulate(rows, columns, "pipe")


def to_latex(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A booktabs tabular."""
    text = _tabulate(rows, columns, "latex_booktabs")
    for symbol, command in LATEX.items():
        text = text.replace(symbol, command)
    return text


def to_csv(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Keys as headings, numbers in full precision, each interval as two columns. A missing value is an empty field."""
    bounded = [column.key for column in columns if any(_interval(row, column.key) for row in rows)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*(column.key for column in columns), *(f"{key} {end}" for key in bounded for end in ("low", "high"))])  # fmt: skip
    for row in rows:
        values = [row.get(column.key) for column in columns]
        bounds = [end for key in bounded for end in (_interval(row, key) or ("", ""))]
        writer.writerow([*("" if value is None else value for value in values), *bounds])
    return buffer.getvalue()


def cell(row: Row, column: Column) -> str:
    """One value as text. `∞` for a value that the row's note calls infinite, a dash for one that it lacks."""
    value = row.get(column.key)
    if value is None:
        return "∞" if str(row.get(f"{column.key}_note", "")).startswith("infinite") else MISSING
    if isinstance(value, str) or column.spec is None:
        return str(value)
    return format(value, column.spec) + (FLAG if column.key in row.get("published_differs", ()) else "")


def filled(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns that at least one row has a value for."""
    return [column for column in columns if any(cell(row, column) != MISSING for row in rows)]


def difference_text(entry: Mapping[str, Any] | None, spec: str) -> str:
    """A paired difference with its interval, both signed: `-1.50 [-2.00, -1.00]`."""
    if entry is None:
        return MISSING
    bounds = "" if entry["interval"] is None else " [{}, {}]".format(*(format(end, f"+{spec}") for end in entry["interval"]))  # fmt: skip
    return format(entry["mean"], f"+{spec}") + bounds


def report_markdown(rows: Sequence[Row], columns: Sequence[Column], compared: Sequence[Column]) -> str:
    """The table, the paired differences in the columns `compared`, and what rows note about their values."""
    text = to_markdown(rows, columns)
    differing = [row for row in rows if row.get("differences")]
    for reference in dict.fromkeys(row["difference_to"] for row in differing):
        to_reference = [row for row in differing if row["difference_to"] == reference]
        shown = [column for column in compared if any(column.key in row["differences"] for row in to_reference)]
        lines = [
            {"method": row["method"]}
            | {column.key: difference_text(row["differences"].get(column.key), column.spec or "") for column in shown}
            for row in to_reference
        ]
        text += f"\nMinus `{reference}` on the same images, with the 95 % bootstrap interval of the mean:\n\n"
        text += to_markdown(lines, [METHOD, *shown])
    noted: dict[str, list[str]] = {}
    for row in rows:
        for note in row_notes(row):
            noted.setdefault(note, []).append(row["method"])
    notes = [
        f"- {'all rows' if len(methods) == len(rows) else ', '.join(methods)}: {note}\n"
        for note, methods in noted.items()
    ]
    return text + ("\n" + "".join(notes) if notes else "")


def write_table(stem: Path, rows: Sequence[Row], columns: Sequence[Column], markdown: str) -> str:
    """STEM.md with the text `markdown`, STEM.tex and STEM.csv. Returns the Markdown."""
    for suffix, text in (("md", markdown), ("tex", to_latex(rows, columns)), ("csv", to_csv(rows, columns))):
        write_atomic(stem.with_name(f"{stem.name}.{suffix}"), text.encode())
    return markdown


def write_json_lines(path: Path, entries: Sequence[Row]) -> None:
    """A line of JSON per entry."""
    lines = "".join(json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n" for entry in entries)
    write_atomic(path, lines.encode())


def row_notes(row: Row) -> list[str]:
    """What a row notes about its own values."""
    notes = [f"{key.removesuffix('_note')} {value}" for key, value in row.items() if key.endswith("_note")]
    return notes + ([row["resized"]] if "resized" in row else [])


def _tabulate(rows: Sequence[Row], columns: Sequence[Column], form: str) -> str:
    cells = [[cell(row, column) for column in columns] for row in rows]
    sides = ["left" if column.spec is None else "right" for column in columns]
    headings = [column.heading for column in columns]
    return tabulate(cells, headings, form, colalign=sides if cells else None, disable_numparse=True) + "\n"


def _interval(row: Row, key: str) -> Sequence[float] | None:
    return (row.get("intervals") or {}).get(key)
