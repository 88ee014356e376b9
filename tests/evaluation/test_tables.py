import csv
import io

import pytest
import torch
from PIL import ImageFont

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.pictures import CELL, _wrap, picture_grid, side_by_side
from hybrid_tokenizer.evaluation.tables import to_csv, to_latex, to_markdown, write_report, write_tables

ROWS = [
    {"method": "identity", "psnr": None, "psnr_note": "infinite for 2 of 2 images", "ssim": 1.0, "ms_ssim": None,
     "ms_ssim_note": "needs images of at least 161 pixels", "num_tokens": 1024.0, "n": 2, "intervals": {"psnr": None}},
    {"method": "guide_only", "psnr": 20.1234, "ssim": 0.5, "ms_ssim": None, "ms_ssim_note": "needs images of at least 161 pixels",
     "num_tokens": 256.0, "n": 2, "intervals": {"psnr": [19.0, 21.0]}, "resized": "crop resized 256 -> 224",
     "difference_to": "hybrid", "differences": {"psnr": {"mean": -1.5, "interval": [-2.0, -1.0], "n": 2}}},
]  # fmt: skip


def test_markdown_shows_values_and_reasons():
    text = to_markdown(ROWS)
    lines = text.splitlines()
    assert lines[0].startswith("| method") and len({len(line) for line in lines[:4]}) == 1
    assert "∞" in lines[2] and "20.12" in lines[3] and "256" in lines[3]
    assert "-1.500 [-2.000, -1.000]" in text and "`hybrid`" in text
    assert "- all rows: ms_ssim needs images" in text and "- guide_only: crop resized 256 -> 224" in text
    assert "MS-SSIM" not in text  # no row has a value


def test_rows_with_other_references_get_a_table_each():
    alone = {**ROWS[1], "method": "semantic_only_wrong_semantics", "difference_to": "semantic_only"}
    first, second = to_markdown([*ROWS, alone]).split("Minus ")[1:]
    assert first.startswith("`hybrid`") and "guide_only" in first and alone["method"] not in first
    assert second.startswith("`semantic_only`") and alone["method"] in second


def test_latex_escapes():
    text = to_latex(ROWS)
    assert r"guide\_only & 20.12" in text and r"$\infty$" in text and r"\bottomrule" in text


def test_csv_is_full_precision_with_intervals():
    identity, guide = csv.DictReader(io.StringIO(to_csv(ROWS)))
    assert guide["psnr"] == "20.1234" and guide["psnr low"] == "19.0" and guide["psnr high"] == "21.0"
    assert identity["psnr"] == "" and identity["psnr low"] == ""


def test_picture_grid_is_one_cell_a_picture():
    pictures = torch.full((2, 3, 16, 16), 200, dtype=torch.uint8)
    grid = picture_grid(
        [("original", pictures), ("guide_tokens_null_condition", pictures)], ["a", "b/c.jpg"], ["", "20 dB"]
    )
    assert grid.width > 2 * CELL and grid.height > 2 * CELL
    assert grid.getpixel((grid.width - CELL // 2, grid.height - CELL // 2)) == (200, 200, 200)
    with pytest.raises(HybridTokenizerError, match="for 3 names"):
        picture_grid([("original", pictures)], ["a", "b", "c"])


def test_long_names_wrap_without_losing_a_letter():
    font = ImageFont.load_default(size=15)
    for name in ("hybrid_with_a_rather_long_variant_name@84,s0.4,n50", "x" * 200, "short", ""):
        lines = _wrap(name, font, CELL)
        assert "".join(lines) == name and all(font.getlength(line) <= CELL for line in lines)


def test_side_by_side():
    picture = side_by_side(torch.ones(3, 8, 12), -torch.ones(3, 8, 12))
    assert picture.height == 8 and picture.getpixel((0, 0)) == (255,) * 3
    assert picture.getpixel((picture.width - 1, 7)) == (0,) * 3


def test_report_is_written_whole_and_tables_come_from_the_json(tmp_path):
    pictures = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    grid = picture_grid([("original", pictures)], ["a"])
    table = write_report(tmp_path, ROWS, {"skipped": []}, [{"method": "identity", "image": "a", "psnr": None}], grid)
    names = {"recon.json", "recon.md", "recon.tex", "recon.csv", "recon.png", "per_image.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "recon.md").read_text() == table
    (tmp_path / "recon.md").unlink()
    assert write_tables(tmp_path) == table == (tmp_path / "recon.md").read_text()
