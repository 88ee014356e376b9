"""Picture grids for a look at many rows, and figures of labelled pictures in the width of a page."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import write_atomic
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_uint8, to_pil

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = (7.0, 9.0)  # inches: the text of a two-column page
WIDEST_CELL, SMALLEST_CELL = 1.4, 0.6
LEFT, GAP = 0.2, 0.05  # inches: the lines' labels, between pictures
FONT, LETTER, LINE = 7, 0.052, 0.115  # points; inches of a letter and of a line of text at that size
DPI = 250
GRID_CELL, GRID_GAP, GRID_LINE = 192, 6, 20  # pixels


class Picture(NamedTuple):
    """A cell of a figure. None leaves it empty."""

    image: UInt8[Tensor, "3 h w"] | None
    caption: str = ""


@dataclass(frozen=True)
class Line:
    """Pictures from left to right, the label beside them read upwards. `opens` puts a larger gap above."""

    label: str
    pictures: Sequence[Picture]
    opens: bool = False


def draw_panels(columns: Sequence[str], lines: Sequence[Line]) -> "Figure":
    """All pictures at one size, each above its caption. Headings keep their line breaks and are wrapped.

    Pictures shrink to fit a page, down to `SMALLEST_CELL`.

    Raises if a line does not have one picture per column, or if pictures differ in size.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wrong = [line.label for line in lines if len(line.pictures) != len(columns)]
    shapes = {tuple(p.image.shape) for line in lines for p in line.pictures if p.image is not None}
    if wrong or not lines or len(shapes) != 1:
        raise HybridTokenizerError(
            f"{len(lines)} lines of {len(columns)} columns, sizes {sorted(shapes)}, lines of another length: {wrong}; "
            "give pictures of one size, one per column"
        )
    (_, height, width), *_ = shapes
    texts = [LINE * any(p.caption for p in line.pictures) + LINE * line.opens for line in lines]
    tallest = (PAGE[1] - 4 * LINE - sum(texts)) / len(lines) - GAP
    cell_width = min(WIDEST_CELL, (PAGE[0] - LEFT) / len(columns) - GAP, max(tallest, SMALLEST_CELL) * width / height)
    cell_height = cell_width * height / width
    headings = [_wrapped(heading, int(cell_width / LETTER)) for heading in columns]
    top = max(heading.count("\n") + 1 for heading in headings) * LINE + GAP
    steps = [cell_height + GAP + text for text in texts]
    page_width = LEFT + len(columns) * (cell_width + GAP)
    page_height = top + sum(steps) + GAP
    figure = Figure(figsize=(page_width, page_height))
    FigureCanvasAgg(figure)

    def write(text: str, x: float, y: float, **options: Any) -> None:
        figure.text(x / page_width, 1 - y / page_height, text, fontsize=FONT, **options)

    for column, heading in enumerate(headings):
        x = LEFT + column * (cell_width + GAP) + cell_width / 2
        write(heading, x, top - GAP / 2, ha="center", va="bottom", linespacing=1.1)
    y = top
    for line, step in zip(lines, steps, strict=True):
        y_of_pictures = y + LINE * line.opens
        write(line.label, LEFT / 2, y_of_pictures + cell_height / 2, ha="center", va="center", rotation=90)
        for column, picture in enumerate(line.pictures):
            if picture.image is None:
                continue
            x = LEFT + column * (cell_width + GAP)
            bottom = 1 - (y_of_pictures + cell_height) / page_height
            axes = figure.add_axes((x / page_width, bottom, cell_width / page_width, cell_height / page_height))
            axes.imshow(rearrange(picture.image, "c h w -> h w c").numpy())
            axes.set_axis_off()
            write(picture.caption, x + cell_width / 2, y_of_pictures + cell_height + GAP / 3, ha="center", va="top")
        y += step
    return figure


def write_figure(stem: Path, figure: "Figure") -> list[Path]:
    """STEM.png and STEM.pdf. The same figure gives the same bytes."""
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_atomic(paths[-1], buffer.getvalue())
    return paths


def _wrapped(text: str, width: int) -> str:
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""])


def picture_grid(
    columns: Sequence[tuple[str, UInt8[Tensor, "k 3 h w"]]], names: Sequence[str], captions: Sequence[str] | None = None
) -> Image.Image:
    """Pictures side by side: a column per method under its name (and caption), a line per image beside its name."""
    counts = {len(pictures) for _, pictures in columns}
    if counts != {len(names)}:
        raise HybridTokenizerError(f"columns hold {sorted(counts)} pictures for {len(names)} names; give one per image")
    font = ImageFont.load_default(size=15)
    captions = captions or [""] * len(columns)
    headings = [
        [*_wrap(title, font, GRID_CELL), *([caption] if caption else [])]
        for (title, _), caption in zip(columns, captions, strict=True)
    ]
    top = GRID_LINE * max(map(len, headings)) + GRID_GAP
    side_names = [_wrap(name, font, GRID_CELL - 2 * GRID_GAP) for name in names]
    left = max((int(font.getlength(line)) for lines in side_names for line in lines), default=0) + 2 * GRID_GAP
    grid = Image.new(
        "RGB", (left + len(columns) * (GRID_CELL + GRID_GAP), top + len(names) * (GRID_CELL + GRID_GAP)), "white"
    )
    draw = ImageDraw.Draw(grid)
    for x, ((_, pictures), heading) in enumerate(zip(columns, headings, strict=True)):
        for i, line in enumerate(heading):
            draw.text((left + x * (GRID_CELL + GRID_GAP), i * GRID_LINE), line, fill="black", font=font)
        for y, picture in enumerate(pictures):
            image = to_pil(from_uint8(picture)).resize((GRID_CELL, GRID_CELL), Image.Resampling.BICUBIC)
            grid.paste(image, (left + x * (GRID_CELL + GRID_GAP), top + y * (GRID_CELL + GRID_GAP)))
    for y, lines in enumerate(side_names):
        for i, line in enumerate(lines[: GRID_CELL // GRID_LINE]):
            draw.text((GRID_GAP, top + y * (GRID_CELL + GRID_GAP) + i * GRID_LINE), line, fill="black", font=font)
    return grid


def side_by_side(original: Float[Tensor, "3 h w"], reconstruction: Float[Tensor, "3 h w"]) -> Image.Image:
    """An original and its reconstruction, at full size."""
    left, right = to_pil(original), to_pil(reconstruction)
    both = Image.new("RGB", (left.width + GRID_GAP + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + GRID_GAP, 0))
    return both


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG file atomically."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break after `_`, `/`, `-`, `@` or a space, or anywhere in a piece that is longer than a line."""
    lines = [""]
    for letter in text:
        if font.getlength(lines[-1] + letter) > width:
            at = max(lines[-1].rfind(mark) for mark in "_/-@ ") + 1 or len(lines[-1])
            lines[-1:] = [lines[-1][:at], lines[-1][at:]]
        lines[-1] += letter
    return [line for line in lines if line]
