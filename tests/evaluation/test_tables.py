"""The one table writer: values, reasons, escapes and files."""

import csv
import io
import json

import pytest

from hybrid_tokenizer.evaluation.studies.recon import recon_markdown, write_tables
from hybrid_tokenizer.evaluation.tables import (
    METHOD,
    Column,
    difference_text,
    filled,
    report_markdown,
    to_csv,
    to_latex,
    to_markdown,
)

COLUMNS = [
    METHOD,
    Column("psnr", "PSNR ↑", ".2f"),
    Column("ms_ssim", "MS-SSIM ↑", ".3f"),
    Column("tokens", "tokens", "d"),
]
ROWS = [
    {"method": "identity", "psnr": None, "psnr_note": "infinite for 2 of 2 images", "ms_ssim": None,
     "ms_ssim_note": "needs images of at least 161 pixels", "tokens": 1024, "intervals": {"psnr": None}},
    {"method": "guide_only", "psnr": 20.1234, "ms_ssim": None, "ms_ssim_note": "needs images of at least 161 pixels",
     "tokens": 256, "intervals": {"psnr": [19.0, 21.0]}, "resized": "crop resized 256 -> 224", "difference_to": "hybrid",
     "differences": {"psnr": {"mean": -1.5, "interval": [-2.0, -1.0], "n": 2}}},
]  # fmt: skip


def test_markdown_shows_values_and_dashes():
    lines = to_markdown(ROWS, COLUMNS).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["method", "PSNR ↑", "MS-SSIM ↑", "tokens"]
    assert cells[2:] == [["identity", "∞", "–", "1024"], ["guide_only", "20.12", "–", "256"]]
    assert cells[1][0].startswith(":-") and cells[1][1].endswith("-:"), "names to the left, numbers to the right"


def test_columns_without_a_value_are_left_out():
    assert [column.key for column in filled(ROWS, COLUMNS)] == ["method", "psnr", "tokens"]
    assert "psnr" in [column.key for column in filled(ROWS[:1], COLUMNS)], "an infinite value is a value"


def test_differences_and_notes_follow_the_table():
    text = report_markdown(ROWS, COLUMNS, [COLUMNS[1]._replace(spec=".3f"), COLUMNS[2]])
    assert "-1.500 [-2.000, -1.000]" in text and "`hybrid`" in text and "MS-SSIM" not in text.split("Minus")[1]
    assert "- all rows: ms_ssim needs images" in text and "- guide_only: crop resized 256 -> 224" in text
    alone = {**ROWS[1], "method": "semantic_only_wrong_semantics", "difference_to": "semantic_only"}
    first, second = report_markdown([*ROWS, alone], COLUMNS, COLUMNS[1:2]).split("Minus ")[1:]
    assert first.startswith("`hybrid`") and "guide_only" in first and alone["method"] not in first.split("- ")[0]
    assert second.startswith("`semantic_only`") and alone["method"] in second


def test_differences_are_signed():
    assert difference_text({"mean": 1.234, "interval": [0.5, 2.0]}, ".2f") == "+1.23 [+0.50, +2.00]"
    assert difference_text({"mean": -1.0, "interval": None}, ".1f") == "-1.0"
    assert difference_text(None, ".1f") == "–"


def test_latex_escapes():
    text = to_latex([*ROWS, {"method": "50 % of tokens", "psnr": "a_b"}], COLUMNS)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == r"\begin{tabular}{lrrr}" and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert r"guide\_only & 20.12 & -- & 256 \\" in lines and r"identity & $\infty$ & -- & 1024 \\" in lines
    assert r"method & PSNR $\uparrow$ & MS-SSIM $\uparrow$ & tokens \\" in lines
    assert r"50 \% of tokens & a\_b & -- & -- \\" in lines


def test_csv_is_full_precision_with_intervals():
    identity, guide = csv.DictReader(io.StringIO(to_csv(ROWS, COLUMNS)))
    assert guide["psnr"] == "20.1234" and guide["psnr low"] == "19.0" and guide["psnr high"] == "21.0"
    assert identity["psnr"] == "" and identity["psnr low"] == "" and identity["tokens"] == "1024"


def test_the_table_of_reconstructions_comes_from_its_json(tmp_path):
    rows = [row | {"num_tokens": float(row["tokens"]), "n": 2, "haarpsi": 0.5} for row in ROWS]
    (tmp_path / "recon.json").write_text(json.dumps({"rows": rows, "provenance": {}}))
    markdown = write_tables(tmp_path)
    assert (tmp_path / "recon.md").read_text() == markdown == recon_markdown(rows)
    header = [cell.strip() for cell in markdown.splitlines()[0].split("|")[1:-1]]
    assert header == ["method", "PSNR ↑", "HaarPSI ↑", "tokens", "n"]
    assert (tmp_path / "recon.csv").read_text().splitlines()[0] == "method,psnr,haarpsi,num_tokens,n,psnr low,psnr high"
    assert r"\toprule" in (tmp_path / "recon.tex").read_text()
    assert "-1.500 [-2.000, -1.000]" in markdown


@pytest.mark.parametrize("write", [to_markdown, to_latex, to_csv])
def test_no_rows_are_an_empty_table(write):
    assert "psnr" in write([], COLUMNS).lower()
