"""Opening one picture: bounded before it is decoded, checked for damage, upright 8-bit sRGB. Every door goes through here."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from hybrid_tokenizer.data.colour import to_upright_rgb
from hybrid_tokenizer.data.verify import Verify, check_file
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""By content, whatever the suffix. Pillow knows others, whose decoders run programs or have no bound on memory."""
MAX_PIXELS = 64_000_000
"""Images that claim more pixels are refused from their header, before anything is decoded."""
SHARE_OF_PIXELS = {"WEBP": 1 / 2, "AVIF": 1 / 4}
"""Of the limit, where a decoder needs so much more memory per pixel."""
MIN_SIDE = 16
MAX_ASPECT = 32
MAX_BYTES_IN_MEMORY = 64 * 2**20
"""Larger files are read piece by piece."""

DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's decoders raise on damaged bytes."""


class UnreadableImage(HybridTokenizerError):
    """One image cannot be used; the run goes on without it and lists it as `skipped NAME: reason`."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{printable(path)}: {printable(reason)}")
        self.path, self.reason = path, printable(reason)

    @property
    def name(self) -> str:
        """The path as records and terminals take it."""
        return printable(self.path)

    def __reduce__(self) -> tuple:  # loader workers send it to the main process
        return type(self), (self.path, self.reason)


def open_rgb(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    data: bytes | None = None,
    draft_side: int | None = None,
    verify: Verify = "full",
) -> Image.Image:
    """Decode an image to RGB, upright, in sRGB: grey, palette, CMYK, alpha (over white), 16 bit, EXIF-rotated, wide gamut.

    No picture that is accepted needs more than 16 bytes per pixel of `MAX_PIXELS` while it is opened.

    Args:
        path: of the file.
        max_pixels: refuse images with more, from their header.
        data: the bytes of the file, where `path` is only what they are called.
        draft_side: decode a JPEG at a half, a quarter or an eighth of its size, with both sides still at least this long.
        verify: how far to look for damage that decoders pass over; see `hybrid_tokenizer.data.verify`.

    Returns:
        An image of mode "RGB".

    Raises:
        UnreadableImage: missing, damaged, not an image, too large, small or long, or a mode without a known value range.

    Examples:
        >>> open_rgb("cat.jpg").size
        (451, 300)
    """
    path = Path(path)
    try:
        with warnings.catch_warnings(), _source(path, data) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the stricter bound
            warnings.simplefilter("ignore", UserWarning)  # damaged metadata; the pixels are read all the same
            with Image.open(file, formats=FORMATS) as image:
                check_size(image, max_pixels)
                raw_mode = str(image.tile[0].args) if image.format == "PNG" else ""
                check_pixels = check_file(file, image, verify)
                if draft_side is not None:
                    image.draft("RGB", (draft_side, draft_side))
                image.load()
                check_pixels(image)
                return to_upright_rgb(image, raw_mode, lambda: _low_bytes(file))
    except UnidentifiedImageError:
        raise UnreadableImage(path, f"damaged, or not one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(path, f"its header claims more than {max_pixels} pixels") from None
    except DECODER_ERRORS as error:
        system = error.strerror if isinstance(error, OSError) else None
        raise UnreadableImage(path, system or first_line(error)) from None


@contextmanager
def _source(path: Path, data: bytes | None) -> Iterator[io.BufferedIOBase]:
    """The file's bytes, in memory unless they are many."""
    if data is not None:
        yield io.BytesIO(data)
        return
    with open(path, "rb") as file:
        yield file if os.fstat(file.fileno()).st_size > MAX_BYTES_IN_MEMORY else io.BytesIO(file.read())


def check_size(image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError for a picture beyond the limits of every door: pixels, shortest side, longest strip."""
    size = f"{image.width}x{image.height}"
    most = min(max_pixels, round(SHARE_OF_PIXELS.get(str(image.format), 1) * MAX_PIXELS))
    if image.width * image.height > most:
        of_kind = f" of {image.format}" if most < max_pixels else ""
        raise ValueError(f"{size} is over the limit of {most} pixels{of_kind}; make it smaller")
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{size} is too small; both sides must have at least {MIN_SIDE} pixels")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{size} is too long; one side may be at most {MAX_ASPECT} times the other, crop it")


def _low_bytes(file: io.BufferedIOBase) -> Image.Image:
    """The low bytes of a 16-bit colour PNG, which Pillow leaves out: those that another byte order would have kept."""
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as image:
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        image.load()
        return image
