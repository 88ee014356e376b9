"""Uploaded images, checked against limits before they are decoded."""

import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from hybrid_tokenizer.apps.web.pages import WebError
from hybrid_tokenizer.data.open import DECODER_ERRORS, FORMATS, MIN_SIDE, UnreadableImage, open_rgb

MAX_BYTES = 8 * 2**20
MAX_PIXELS = 24_000_000


def read_upload(data: bytes) -> Image.Image:
    """An upright RGB image. The file name is ignored. Raises WebError 413 or 415 with the reason."""
    if len(data) > MAX_BYTES:
        raise WebError(413, f"the image has {len(data)} bytes, over the limit of {MAX_BYTES}; send a smaller one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on damaged metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:  # reads no pixel
                width, height = header.size
    except Image.DecompressionBombError:
        raise WebError(413, f"the image is over the limit of {MAX_PIXELS} pixels; send a smaller one") from None
    except UnidentifiedImageError:
        raise WebError(
            415, f"this file is not an image of a supported format; send one of {', '.join(FORMATS)}"
        ) from None
    except DECODER_ERRORS as error:
        raise WebError(415, f"this image cannot be read ({type(error).__name__}); save it again as PNG") from None
    if width * height > MAX_PIXELS:
        raise WebError(
            413, f"the image has {width}x{height} pixels, over the limit of {MAX_PIXELS}; send a smaller one"
        )
    if min(width, height) < MIN_SIDE:
        raise WebError(415, f"the image has {width}x{height} pixels; send one with sides of at least {MIN_SIDE}")
    try:
        return open_rgb(Path("the image"), max_pixels=MAX_PIXELS, data=data)
    except UnreadableImage as error:
        raise WebError(415, f"this image cannot be read ({error.reason}); save it again as PNG") from None
