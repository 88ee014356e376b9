"""Folders of images, nested or flat, any mode; every failure is an `UnreadableImage` with its path and reason."""

import hashlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hybrid_tokenizer.errors import HybridTokenizerError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
MAX_PIXELS = 64_000_000
"""Images that claim more pixels are refused from their header, before anything is decoded."""

DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's decoders raise on damaged bytes."""


class UnreadableImage(HybridTokenizerError):
    """One image can not be used; the run goes on without it and lists it as `skipped PATH: reason`."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple:  # loader workers send it to the main process
        return type(self), (self.path, self.reason)


def find_images(root: str | os.PathLike[str]) -> list[Path]:
    """Every image file under `root`, sorted by relative path; hidden files and folders are left out."""
    root = Path(root)
    if not root.is_dir():
        raise HybridTokenizerError(f"data.root={str(root)!r} is not a folder; give a folder of images")
    paths = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]
    if not paths:
        raise HybridTokenizerError(
            f"data.root={str(root)!r} holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}, nested or flat"
        )
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def open_rgb(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    data: bytes | None = None,
    draft_side: int | None = None,
) -> Image.Image:
    """Decode an image to RGB, upright: grey, palette, CMYK, alpha (over white), 16 bit and EXIF-rotated files included.

    data: the bytes of the file, where `path` is only what they are called.
    draft_side: decode a JPEG at a half, a quarter or an eighth of its size, with both sides still at least this long.

    Raises:
        UnreadableImage: missing, truncated, not an image, too many pixels, or a mode without a known value range.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the stricter bound
            warnings.simplefilter("ignore", UserWarning)  # damaged metadata; the pixels are read all the same
            with Image.open(path if data is None else io.BytesIO(data)) as image:
                if image.width * image.height > max_pixels:
                    raise UnreadableImage(
                        path, f"{image.width}x{image.height} is over the limit of {max_pixels} pixels"
                    )
                if draft_side is not None:
                    image.draft("RGB", (draft_side, draft_side))
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(path, f"its header claims more than {max_pixels} pixels") from None
    except DECODER_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableImage(path, reason.replace(str(path), "file")) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255
        levels = np.asarray(image).astype(np.float64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"mode {image.mode} values outside 0..65535 have no known range")
        return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("mode F (floats) has no known value range; convert it to 8 or 16 bit")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def hold_out(paths: list[Path], root: Path, fraction: float = 0.02, at_least: int = 8) -> tuple[list[Path], list[Path]]:
    """Split off a validation part by the hash of the relative path: the same files whatever else the folder holds.

    Returns (training, validation). A folder of fewer than 16 images gives up to half of them.
    """
    if len(paths) < 2:
        raise HybridTokenizerError(
            f"{root} holds {len(paths)} image(s); at least 2 are needed to hold one out for validation"
        )
    count = min(max(at_least, round(fraction * len(paths))), len(paths) // 2)
    ranked = sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest())
    held = set(ranked[:count])
    return [path for path in paths if path not in held], [path for path in paths if path in held]
