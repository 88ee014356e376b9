"""Figures and picture grids."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.pictures import (
    DPI,
    GRID_CELL,
    PAGE,
    Line,
    Picture,
    _wrap,
    draw_panels,
    picture_grid,
    side_by_side,
    write_figure,
)


def colour(*rgb, height=16, width=24):
    return torch.tensor(rgb, dtype=torch.uint8)[:, None, None].expand(3, height, width)


def lines_of(count, columns=2):
    return [Line(f"line {i}", [Picture(colour(9, 9, 9), "20.0 dB")] * columns, opens=bool(i)) for i in range(count)]


def test_pictures_stand_where_their_line_and_column_say(tmp_path):
    red, green, blue = colour(255, 0, 0), colour(0, 255, 0), colour(0, 0, 255)
    figure = draw_panels(
        ["one", "two"], [Line("a", [Picture(red), Picture(green)]), Line("b", [Picture(None), Picture(blue, "3 dB")])]
    )
    png, pdf = write_figure(tmp_path / "figure", figure)
    assert pdf.read_bytes().startswith(b"%PDF")
    image = np.asarray(Image.open(png).convert("RGB"))
    assert image.shape[1] == pytest.approx(figure.get_size_inches()[0] * DPI, abs=1)

    def centre(rgb):
        rows, columns = np.nonzero((image == rgb).all(-1))
        return rows.mean(), columns.mean(), np.ptp(columns) / np.ptp(rows)

    (y_red, x_red, shape), (y_green, x_green, _), (y_blue, x_blue, _) = map(
        centre, ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    )
    assert abs(y_red - y_green) < 1 and x_red < x_green and abs(x_green - x_blue) < 1 and y_blue > y_green
    assert shape == pytest.approx(24 / 16, rel=0.02)


def test_a_figure_fits_a_page_and_the_same_one_is_the_same_file(tmp_path):
    for count, columns in ((1, 9), (10, 2), (9, 5)):
        width, height = draw_panels([f"c{i}" for i in range(columns)], lines_of(count, columns)).get_size_inches()
        assert width <= PAGE[0] + 0.01 and height <= PAGE[1] + 0.01
    first, second = (
        [path.read_bytes() for path in write_figure(tmp_path / name, draw_panels(["x", "y"], lines_of(1)))]
        for name in "ab"
    )
    assert first == second
    assert Image.open(io.BytesIO(first[0])).size[0] > 100


@pytest.mark.parametrize(
    "lines", [[], [Line("a", [Picture(colour(0, 0, 0))])], [Line("a", [Picture(colour(0, 0, 0)), Picture(colour(0, 0, 0, width=8))])]]
)  # fmt: skip
def test_crooked_tables_are_refused(lines):
    with pytest.raises(HybridTokenizerError, match="one per column"):
        draw_panels(["x", "y"], lines)


def test_picture_grid_has_a_cell_per_picture():
    pictures = torch.full((2, 3, 16, 16), 200, dtype=torch.uint8)
    grid = picture_grid(
        [("original", pictures), ("guide_tokens_null_condition", pictures)], ["a", "b/c.jpg"], ["", "20 dB"]
    )
    assert grid.width > 2 * GRID_CELL and grid.height > 2 * GRID_CELL
    assert grid.getpixel((grid.width - GRID_CELL // 2, grid.height - GRID_CELL // 2)) == (200, 200, 200)
    with pytest.raises(HybridTokenizerError, match="for 3 names"):
        picture_grid([("original", pictures)], ["a", "b", "c"])


def test_long_names_wrap_without_losing_a_letter():
    font = ImageFont.load_default(size=15)
    for name in ("hybrid_with_a_rather_long_variant_name@84,s0.4,n50", "x" * 200, "short", ""):
        lines = _wrap(name, font, GRID_CELL)
        assert "".join(lines) == name and all(font.getlength(line) <= GRID_CELL for line in lines)


def test_side_by_side():
    picture = side_by_side(torch.ones(3, 8, 12), -torch.ones(3, 8, 12))
    assert picture.height == 8 and picture.getpixel((0, 0)) == (255,) * 3
    assert picture.getpixel((picture.width - 1, 7)) == (0,) * 3
