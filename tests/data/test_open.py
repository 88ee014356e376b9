"""One door for all pictures: modes, transparency, profiles, orientation, and what is refused."""

import io
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from hybrid_tokenizer.data import UnreadableImage, open_rgb
from hybrid_tokenizer.data.open import MAX_PIXELS
from hybrid_tokenizer.data.samples import sample_photographs


def enlarged(levels):
    """Each pixel as 16x16 of them."""
    return levels.repeat(16, axis=0).repeat(16, axis=1)


SMALL = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [250, 240, 230], [128, 128, 128]]], dtype=np.uint8
)
COLOURS = enlarged(SMALL)
"""Six colours in 2 rows and 3 columns: turned images differ in size."""


def picture(height=20, width=30, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(width, height, depth, colour, rows=(), **chunks):
    """A PNG of raw rows, each `bytes`; further chunks come before the pixels."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows)) if rows else b""
    bodies = [b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)]
    bodies += [name.encode() + body for name, body in chunks.items()] + [b"IDAT" + data, b"IEND"]
    written = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in bodies]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def opened(data, **options):
    image = open_rgb("the picture", data=data, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def save(folder, image, name, **options):
    image.save(folder / name, **options)
    image = open_rgb(folder / name)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_every_mode_becomes_rgb(tmp_path):
    colours = Image.fromarray(COLOURS)
    grey = colours.convert("L")
    as_rgb = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    assert np.array_equal(save(tmp_path, colours, "rgb.png"), COLOURS)
    assert np.array_equal(save(tmp_path, grey, "grey.png"), as_rgb)
    assert np.array_equal(save(tmp_path, colours.convert("P", palette=Image.Palette.ADAPTIVE), "palette.png"), COLOURS)
    levels = enlarged(np.array([[0, 255, 0], [255, 0, 255]], dtype=np.uint8))
    assert np.array_equal(save(tmp_path, Image.fromarray(levels).convert("1"), "bits.png")[..., 0], levels)
    cmyk = Image.fromarray(np.full((16, 24, 3), (200, 60, 90), dtype=np.uint8)).convert("CMYK")
    assert np.abs(save(tmp_path, cmyk, "cmyk.jpg", quality=95) - [200, 60, 90]).max() <= 4


def test_alpha_is_laid_over_white(tmp_path):
    alpha = enlarged(np.array([[0, 255, 128], [255, 0, 64]], dtype=np.uint8))
    share = alpha[..., None] / 255
    over_white = COLOURS * share + 255 * (1 - share)
    rgba = Image.fromarray(np.dstack([COLOURS, alpha]))
    assert np.abs(save(tmp_path, rgba, "rgba.png") - over_white).max() <= 1
    grey = np.asarray(Image.fromarray(COLOURS).convert("L"))
    over_white = (grey * share[..., 0] + 255 * (1 - share[..., 0]))[..., None]
    assert np.abs(save(tmp_path, Image.fromarray(np.dstack([grey, alpha])), "la.png") - over_white).max() <= 1
    palette = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
    clear = palette.getpixel((0, 0))
    expected = COLOURS.copy()
    expected[:16, :16] = 255
    assert np.array_equal(save(tmp_path, palette, "clear.png", transparency=clear), expected)
    assert np.array_equal(save(tmp_path, Image.fromarray(COLOURS), "key.png", transparency=(255, 0, 0)), expected)


def test_16_bit_grey_keeps_its_range(tmp_path):
    levels = enlarged(np.array([[0, 257, 1000], [32768, 65278, 65535]], dtype=np.uint16))
    read = save(tmp_path, Image.fromarray(levels), "deep.png")
    assert np.array_equal(read[..., 0], np.round(levels / 257)) and np.ptp(read, axis=2).max() == 0
    with pytest.raises(UnreadableImage, match="floats"):
        save(tmp_path, Image.fromarray(np.ones((16, 16), dtype=np.float32)), "float.tif")
    with pytest.raises(UnreadableImage, match=r"0\.\.65535"):
        save(tmp_path, Image.fromarray(np.full((16, 16), 70000, dtype=np.int32)), "int.tif")


def test_every_16_bit_level_rounds_to_the_nearest(tmp_path):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(save(tmp_path, Image.fromarray(levels), "all.png")[..., 0], np.round(levels / 257))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_clear_grey_level_at_every_depth(depth):
    """A PNG names the clear level in its own depth; Pillow's levels of 2 and 4 bits are scaled, those of 16 are not."""
    most = 2**depth - 1
    shades = [0, most, most - 1 if depth == 16 else most] * 16
    if depth == 16:
        row = struct.pack(f">{len(shades)}H", *shades)
    else:
        bits = "".join(f"{shade:0{depth}b}" for shade in shades)
        row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    read = opened(png(48, 16, depth, 0, [row] * 16, tRNS=struct.pack(">H", 0)))
    assert (read == 255).all(), "level 0 is clear, all others are white"
    read = opened(png(48, 16, depth, 0, [row] * 16, tRNS=struct.pack(">H", most - 1 if depth == 16 else most)))
    assert (read[:, ::3] == 0).all() and (read[:, 1::3] == 255).all() and (read[:, 2::3] == 255).all()


def test_the_clear_colour_of_16_bit_channels_is_exact():
    """Two colours whose high bytes agree: only the one that is named is clear."""
    named, near, other = (0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0x9ABC), (0, 0x8000, 0xFFFF)
    row = b"".join(struct.pack(">3H", *colour) for colour in (named, near, other)) * 16
    read = opened(png(48, 16, 16, 2, [row] * 16, tRNS=struct.pack(">3H", *named)))
    assert (read[:, ::3] == 255).all()
    assert (read[:, 1::3] == (0x12, 0x56, 0x9A)).all() and (read[:, 2::3] == (0, 0x80, 0xFF)).all()


@pytest.mark.parametrize(("colour", "channels"), [(4, 2), (6, 4)])
def test_16_bit_alpha_is_laid_over_white(colour, channels):
    levels = np.zeros((16, 16, channels), dtype=">u2")
    levels[:, :8, -1] = 0x8000  # black, half clear, beside black, clear
    read = opened(png(16, 16, 16, colour, [row.tobytes() for row in levels]))
    assert np.abs(read[:, :8] - 127).max() <= 1 and (read[:, 8:] == 255).all()


# profiles


def profile(primaries, gamma=2.2):
    """A display's ICC profile from the chromaticities of red, green, blue and white, as LittleCMS would write it."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = xyz[:, 3]
    scale = np.linalg.solve(xyz[:, :3], white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    adapt = np.linalg.inv(bradford) @ np.diag(bradford @ d50 / (bradford @ white)) @ bradford
    columns = (adapt @ (xyz[:, :3] * scale)).T

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    def xyz_tag(values):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = [(b"desc", text), (b"wtpt", xyz_tag(d50)), (b"cprt", b"text\0\0\0\0none\0")]
    tags += [(name, xyz_tag(column)) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    directory, body, position = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += bytes(-len(data) % 4)
        directory += name + struct.pack(">II", position + len(body), len(data))
        body += data
    header = struct.pack(">I", position + len(body)) + b"lcms" + b"\x02\x40\0\0mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(map(fixed, d50))
    return header.ljust(128, b"\0") + directory + body


ADOBE_RGB = profile([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.329)])
DISPLAY_P3 = profile([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.329)])
SRGB_BY_ANOTHER_HAND = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS_WITH_PROFILES = ["png", "jpg", "webp", "tif", "avif"]
LOSSLESS = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}  # fmt: skip


def in_profile(image, icc):
    """sRGB levels in the levels of another profile: what a camera that is set to it would store."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")


@pytest.mark.parametrize("suffix", FORMATS_WITH_PROFILES)
@pytest.mark.parametrize("icc", [ADOBE_RGB, DISPLAY_P3], ids=["adobe_rgb", "display_p3"])
def test_wide_gamut_becomes_srgb(tmp_path, suffix, icc):
    muted = Image.fromarray((64 + COLOURS // 2).astype(np.uint8))  # within every gamut
    stored = in_profile(muted, icc)
    assert np.abs(np.asarray(stored).astype(int) - np.asarray(muted)).max() > 10
    read = save(tmp_path, stored, f"wide.{suffix}", icc_profile=icc, **LOSSLESS.get(suffix, {}))
    assert np.abs(read - np.asarray(muted)).max() <= (3 if suffix in ("png", "tif", "webp") else 6)


def test_colours_beside_transparency_are_converted_too(tmp_path):
    muted = Image.fromarray((64 + COLOURS // 2).astype(np.uint8))
    stored = in_profile(muted, ADOBE_RGB)
    stored.putalpha(Image.fromarray(enlarged(np.array([[255, 255, 0], [255, 255, 255]], dtype=np.uint8))))
    expected = np.asarray(muted).copy()
    expected[:16, 32:] = 255
    assert np.abs(save(tmp_path, stored, "clear.png", icc_profile=ADOBE_RGB) - expected).max() <= 3
    palette = in_profile(muted, ADOBE_RGB).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.abs(save(tmp_path, palette, "palette.png", icc_profile=ADOBE_RGB) - np.asarray(muted)).max() <= 3


@pytest.mark.parametrize(
    "icc",
    [SRGB_BY_ANOTHER_HAND, b"no profile", ADOBE_RGB[:200], ADOBE_RGB[:64] + bytes(len(ADOBE_RGB) - 64)],
    ids=["srgb", "text", "cut", "zeros"],
)
def test_srgb_and_broken_profiles_change_nothing(tmp_path, icc):
    smooth = picture(64, 64)
    assert np.array_equal(save(tmp_path, smooth, "same.png", icc_profile=icc), np.asarray(smooth))


def test_a_hole_in_a_profile_changes_nothing(tmp_path):
    """Formats other than PNG have no checksum over the profile."""
    whole = sample_photographs()["cat"].info["icc_profile"]
    for start in (500, 1500, 2400):
        damaged = whole[:start] + bytes(300) + whole[start + 300 :]
        read = save(tmp_path, smooth := picture(64, 64), "same.webp", icc_profile=damaged, lossless=True)
        assert np.array_equal(read, np.asarray(smooth))


def test_a_profile_of_another_kind_of_picture_is_ignored(tmp_path):
    grey = picture(64, 64).convert("L")
    assert np.array_equal(save(tmp_path, grey, "grey.png", icc_profile=ADOBE_RGB)[..., 0], np.asarray(grey))


# orientation


@pytest.mark.parametrize(("orientation", "turned"), [(1, COLOURS), (3, COLOURS[::-1, ::-1]), (6, np.rot90(COLOURS, -1)), (8, np.rot90(COLOURS))])  # fmt: skip
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(save(tmp_path, Image.fromarray(COLOURS), "turned.png", exif=exif), turned)
    exif_of_result = open_rgb(tmp_path / "turned.png").getexif()
    assert orientation == 1 or 0x0112 not in exif_of_result, "nobody turns it once more"


BAD_RATIONAL = (
    b"II*\0\x08\0\0\0" b"\x02\0"
    b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"  # orientation 6
    b"\x1a\x01\x0a\0\x01\0\0\0\x26\0\0\0"  # a signed rational that cannot be written again
    b"\0\0\0\0" b"\xff\xff\xff\xff\0\0\0\0"
)  # fmt: skip


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_that_cannot_be_written_again_still_turns(tmp_path, suffix):
    smooth = picture(48, 64)
    options = LOSSLESS.get(suffix, {})
    straight = save(tmp_path, smooth, f"straight.{suffix}", **options)
    read = save(tmp_path, smooth, f"turned.{suffix}", exif=b"Exif\0\0" + BAD_RATIONAL, **options)
    assert np.array_equal(read, np.rot90(straight, -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40])
def test_exif_that_cannot_be_read_is_ignored(tmp_path, exif):
    smooth = picture(48, 64)
    assert np.array_equal(save(tmp_path, smooth, "whole.png", exif=exif), np.asarray(smooth))


# refusals


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((15, 400), "15x400 is too small; both sides must have at least 16 pixels"),
        ((1, 1), "1x1 is too small; both sides must have at least 16 pixels"),
        ((16, 513), "16x513 is too long; one side may be at most 32 times the other, crop it"),
        ((2000, 16), "2000x16 is too long; one side may be at most 32 times the other, crop it"),
        ((9000, 9000), "9000x9000 is over the limit of 64000000 pixels; make it smaller"),
    ],
)
def test_sizes_are_refused_from_the_header(size, reason):
    with pytest.raises(UnreadableImage) as error:
        open_rgb("strip.png", data=png(*size, 8, 2))
    assert error.value.reason == reason and str(error.value) == f"strip.png: {reason}"


def test_the_longest_and_smallest_that_are_taken(tmp_path):
    assert save(tmp_path, Image.new("RGB", (16, 512)), "long.png").shape == (512, 16, 3)
    assert save(tmp_path, Image.new("RGB", (16, 16)), "small.png").shape == (16, 16, 3)


def test_refusals_name_path_and_reason(tmp_path):
    whole = tmp_path / "whole.jpg"
    picture(200, 300).save(whole)
    files = {
        "truncated.jpg": whole.read_bytes()[:2000],
        "text.png": b"not an image at all\nreally\n",
        "empty.png": b"",
        "huge.png": png(60000, 60000, 8, 2),
        "nothing.png": png(0, 5, 8, 2),
    }
    reasons = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage) as error:
            open_rgb(tmp_path / name)
        assert error.value.path == tmp_path / name and "\n" not in str(error.value)
        assert str(error.value) == f"{tmp_path / name}: {error.value.reason}"
        reasons[name] = error.value.reason
    assert "64000000 pixels" in reasons["huge.png"] and "truncated" in reasons["truncated.jpg"]
    assert reasons["text.png"] == "damaged, or not one of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP"
    with pytest.raises(UnreadableImage, match="No such file"):
        open_rgb(tmp_path / "absent.png")
    with pytest.raises(UnreadableImage, match="30x20 is over the limit of 599"):
        save(tmp_path, picture(), "small.png")
        open_rgb(tmp_path / "small.png", max_pixels=599)


def test_other_kinds_are_refused_whatever_their_name(tmp_path):
    """Pillow would start Ghostscript for this one."""
    picture(64, 64).save(tmp_path / "drawing.eps")
    (tmp_path / "drawing.eps").rename(tmp_path / "photo.jpg")
    with pytest.raises(UnreadableImage, match="not one of AVIF"):
        open_rgb(tmp_path / "photo.jpg")


def test_a_refusal_crosses_processes(tmp_path):
    copy = pickle.loads(pickle.dumps(UnreadableImage(tmp_path / "a.png", "cut off")))  # noqa: S301
    assert (copy.path, copy.reason, str(copy)) == (tmp_path / "a.png", "cut off", f"{tmp_path / 'a.png'}: cut off")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp", "avif"])
def test_damaged_bytes_raise_nothing_else_and_warn_of_nothing(tmp_path, suffix):
    path = tmp_path / f"damaged.{suffix}"
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "description"
    picture().save(path, **({} if suffix in ("gif", "bmp") else {"exif": exif}))
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(120):
            damaged = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
            for _ in range(min(len(damaged), draw.choice([1, 2, 5]))):
                damaged[draw.randrange(min(len(damaged), draw.choice([60, 200, 10**6])))] = draw.randrange(256)
            path.write_bytes(damaged)
            try:
                assert open_rgb(path).mode == "RGB"
            except UnreadableImage:
                refused += 1
    assert refused > 20


# memory

PEAK = """
import sys
from hybrid_tokenizer.data.open import open_rgb

def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

before = kilobytes("VmRSS")
image = open_rgb(sys.argv[1])
print((kilobytes("VmHWM") - before) * 1024 / (image.width * image.height))
"""


@pytest.mark.parametrize("kind", ["grey16", "rgba", "key16"])
def test_bands_bound_the_memory_of_conversions(tmp_path, kind):
    """Of pictures of 16 million pixels; 16-bit grey took 28 bytes per pixel when it was converted as a whole."""
    side = 4000
    path = tmp_path / "large.png"
    if kind == "grey16":
        Image.fromarray(np.tile(np.arange(side, dtype=np.uint16), (side, 1))).save(path, compress_level=1)
    elif kind == "rgba":
        Image.new("RGBA", (side, side), (10, 20, 30, 40)).save(path, compress_level=1)
    else:
        row = struct.pack(">3H", 1, 2, 3) * side
        path.write_bytes(png(side, side, 16, 2, [row] * side, tRNS=struct.pack(">3H", 1, 2, 4)))
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 16
    assert MAX_PIXELS == 64_000_000
