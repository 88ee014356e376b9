"""From any picture that Pillow decodes to upright 8-bit sRGB: depths, palettes, transparency, ICC profiles, orientation.

Large pictures are converted in bands of rows, so that a conversion needs the memory of its result and little more.
"""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms

BAND_PIXELS = 2**20
LEAST_DIFFERENCE = 2
"""In levels of 8 bits. A profile that changes no colour by more is sRGB under another name and leaves the picture alone."""
FALL, LEAST_WHITE, NO_BLACK = 8, 240, 32
"""In levels of 8 bits. A profile is damaged that gives a lighter grey a level lower by more, does not keep white, or makes
black of this grey."""
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
PROFILE_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what makes the picture upright."""
BROKEN_METADATA = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError,
    OverflowError, ImageCms.PyCMSError,
)  # fmt: skip


def to_upright_rgb(image: Image.Image, raw_mode: str, low_bytes: Callable[[], Image.Image]) -> Image.Image:
    """A decoded picture as RGB: over white where it is transparent, in sRGB where it has a profile, upright.

    Metadata that cannot be read is ignored, and the picture is kept.

    raw_mode: the layout of the file's pixels, as the decoder called it.
    low_bytes: decodes the picture once more, with the low bytes of its 16-bit channels as levels.

    Raises ValueError for a mode without a known value range.
    """
    convert = _conversion(image, raw_mode, low_bytes)
    return _upright(image if convert is None else _in_bands(image, convert), _turn(image))


def _in_bands(image: Image.Image, convert: Callable[[Image.Image, int], Image.Image]) -> Image.Image:
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        return convert(image, 0)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(band, top), (0, top))
    return result


def _conversion(
    image: Image.Image, raw_mode: str, low_bytes: Callable[[], Image.Image]
) -> Callable[[Image.Image, int], Image.Image] | None:
    """What makes RGB of a band of the picture and the band's first row; None where the picture is it already."""
    mode, key = image.mode, image.info.get("transparency")
    if mode == "F":
        raise ValueError("mode F (floats) has no known value range; convert it to 8 or 16 bit")
    transform = _to_srgb(image.info.get("icc_profile"), _colour_mode(mode))
    is_keyed = key is not None and mode not in (*ALPHA_MODES, "P")
    if mode == "RGB" and not is_keyed and transform is None:
        return None
    low = low_bytes() if is_keyed and raw_mode == "RGB;16B" else None

    def convert(band: Image.Image, top: int) -> Image.Image:
        if mode in ALPHA_MODES or (mode == "P" and key is not None):
            with_alpha = band.convert("RGBA")
            colours = with_alpha.convert("RGB")
            if transform is not None and _colour_mode(mode) == "RGB":
                colours = transform.apply(colours)
            elif transform is not None:  # a grey profile
                colours = transform.apply(band.convert("LA").getchannel("L"))
            colours.putalpha(with_alpha.getchannel("A"))
            return Image.alpha_composite(Image.new("RGBA", band.size, "white"), colours).convert("RGB")
        eight_bit = _eight_bit(band)
        colours = eight_bit.convert("RGB") if transform is None else transform.apply(eight_bit)
        if is_keyed:
            below = None if low is None else low.crop((0, top, band.width, top + band.height))
            colours.paste((255, 255, 255), mask=_where(band, key, raw_mode, below))
        return colours

    return convert


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deep grey to 8 bits (Pillow's own conversion clips at 255), palettes to RGB, everything else as it is."""
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"mode {image.mode} values outside 0..65535 have no known range")
        return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:  # a conversion would carry it over, and fail where it has 16 bits
        image = image.copy()
        del image.info["transparency"]
    if image.mode in ("RGB", "L", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _colour_mode(mode: str) -> str:
    """Of the modes that a profile can speak of, the one whose levels this mode's pictures are converted from."""
    if mode in ("1", "L", "LA", "La") or mode.startswith("I"):
        return "L"
    return mode if mode == "CMYK" else "RGB"


def _where(band: Image.Image, key: int | tuple[int, ...], raw_mode: str, low: Image.Image | None) -> Image.Image:
    """A mask of the pixels that have the one colour which a PNG declares transparent, in the file's own depth."""
    levels = np.asarray(band if band.mode != "1" else band.convert("L"))
    if low is not None:
        levels = levels.astype(np.uint16) << 8 | np.asarray(low)
    elif raw_mode in ("L;2", "L;4"):
        levels = levels // (85 if raw_mode == "L;2" else 17)
    same = levels == np.asarray(key)
    return Image.fromarray((same.all(-1) if levels.ndim == 3 else same).astype(np.uint8) * 255)


class _Transform:
    """Levels of a profile's space to sRGB."""

    def __init__(self, source: ImageCms.ImageCmsProfile, mode: str):
        self._transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )

    def apply(self, image: Image.Image) -> Image.Image:
        return ImageCms.applyTransform(image, self._transform)


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes | None, mode: str) -> _Transform | None:
    """None for no profile, a broken or damaged one, one of another kind of picture, and for sRGB under whatever name."""
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != PROFILE_SPACES[mode]:
            return None
        transform = _Transform(source, mode)
        if mode == "CMYK":
            return transform
        if not _is_plausible(transform, mode):
            return None
        steps = np.linspace(0, 255, 18).round().astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
        colours = Image.fromarray(grid if mode == "RGB" else np.ascontiguousarray(grid[..., 0]))
        change = np.asarray(transform.apply(colours)).astype(int) - np.asarray(colours.convert("RGB"))
    except BROKEN_METADATA:
        return None
    return transform if np.abs(change).max() > LEAST_DIFFERENCE else None


def _is_plausible(transform: _Transform, mode: str) -> bool:
    """Whether lighter greys stay lighter and white stays white. Few profiles have a checksum, so a hole shows in this alone."""
    ramp = np.arange(256, dtype=np.uint8)[None]
    greys = Image.fromarray(np.repeat(ramp[..., None], 3, axis=-1) if mode == "RGB" else ramp)
    levels = np.asarray(transform.apply(greys))[0].astype(int)
    falls = np.maximum.accumulate(levels) - levels
    return bool(falls.max() <= FALL and levels[-1].min() >= LEAST_WHITE and levels[NO_BLACK].min() > 0)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Nothing of EXIF but the orientation is used, so the rest may be as broken as it likes."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except BROKEN_METADATA:
        return None
    return TURNS.get(orientation) if isinstance(orientation, int) else None


def _upright(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in ("exif", "xmp", "XML:com.adobe.xmp"):  # they would turn it again
        turned.info.pop(name, None)
    return turned
