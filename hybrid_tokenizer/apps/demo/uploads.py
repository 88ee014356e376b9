"""Pictures that strangers send, bounded before they are decoded."""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from hybrid_tokenizer.apps.web.pages import WebError
from hybrid_tokenizer.data.folders import DECODER_ERRORS, UnreadableImage, open_rgb

MOST_BYTES = 8 * 2**20
MOST_PIXELS = 24_000_000
LEAST_SIDE = 16
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow knows others whose decoders run programs or were seldom read by strangers' files."""


def read_upload(data: bytes) -> Image.Image:
    """RGB, upright. The file's name plays no part. Raises WebError 413 or 415 with the reason."""
    if len(data) > MOST_BYTES:
        raise WebError(413, f"the picture has {len(data)} bytes, over the limit of {MOST_BYTES}; send a smaller one")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:  # reads no pixel
            width, height = header.size
    except Image.DecompressionBombError:
        raise WebError(413, f"the picture is over the limit of {MOST_PIXELS} pixels; send a smaller one") from None
    except UnidentifiedImageError:
        raise WebError(415, f"this file is no picture of a known kind; send one of {', '.join(FORMATS)}") from None
    except DECODER_ERRORS as error:
        raise WebError(415, f"this picture can not be read ({type(error).__name__}); save it again as PNG") from None
    if width * height > MOST_PIXELS:
        raise WebError(
            413, f"the picture has {width}x{height} pixels, over the limit of {MOST_PIXELS}; send a smaller one"
        )
    if min(width, height) < LEAST_SIDE:
        raise WebError(415, f"the picture has {width}x{height} pixels; send one of at least {LEAST_SIDE} a side")
    try:
        return open_rgb(Path("the picture"), max_pixels=MOST_PIXELS, data=data)
    except UnreadableImage as error:
        raise WebError(415, f"this picture can not be read ({error.reason}); save it again as PNG") from None
