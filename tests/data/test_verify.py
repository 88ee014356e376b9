"""Damage that decoders pass over, by format and level; whole pictures with long runs of zeros are left in peace."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hybrid_tokenizer.data import UnreadableImage, open_rgb, sample_photographs
from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.errors import HybridTokenizerError

ENCODINGS = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 80}),
    "webp_lossless": ("WEBP", {"lossless": True}),
    "avif": ("AVIF", {"quality": 70}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "gif": ("GIF", {}),
    "jpg": ("JPEG", {"quality": 85}),
    "jpg_progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "jpg_restarts": ("JPEG", {"quality": 85, "restart_marker_rows": 1}),
    "jpg_grey": ("JPEG", {"quality": 85}),
    "jpg_cmyk": ("JPEG", {"quality": 85}),
}


@pytest.fixture(scope="module")
def photograph():
    return sample_photographs()["cat"].resize((360, 240))


@pytest.fixture(scope="module")
def files(photograph):
    modes = {"jpg_grey": "L", "jpg_cmyk": "CMYK"}
    return {
        name: encoded(photograph.convert(modes.get(name, "RGB")), kind, **options)
        for name, (kind, options) in ENCODINGS.items()
    }


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data, verify):
    return np.asarray(open_rgb("x", data=data, verify=verify)).astype(int)


def reason(data, verify):
    with pytest.raises(UnreadableImage) as error:
        open_rgb("x", data=data, verify=verify)
    return error.value.reason


@pytest.mark.parametrize("verify", ["full", "cheap", "off"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_whole_files_are_the_same_at_every_level(files, name, verify):
    assert np.array_equal(pixels(files[name], verify), np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")))


@pytest.mark.parametrize("verify", ["full", "cheap"])
@pytest.mark.parametrize("kept", [0.25, 0.6, 0.95])
@pytest.mark.parametrize("name", ENCODINGS)
def test_zero_filled_tails_are_refused(files, name, kept, verify):
    """What an interrupted download leaves of a file that was given its length at the start."""
    data = files[name]
    count = int(kept * len(data))
    reason(data[:count] + bytes(len(data) - count), verify)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("webp", r"\d+ bytes of the coded data are zeros; the WebP is damaged or incomplete"),
        ("avif", "a part of the AVIF's coded data is zeros; it is damaged or incomplete"),
        ("bmp", "the picture is black from the middle of row 144 of 240 on; it is incomplete"),
        ("tif", r"the picture is black from the middle of row \d+ of 240 on; it is incomplete"),
    ],
)
def test_what_is_said_of_zero_filled_tails(files, name, message):
    data = files[name]
    count = int(0.6 * len(data))
    assert re.fullmatch(message, reason(data[:count] + bytes(len(data) - count), "cheap"))


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name.startswith("jpg")])
def test_a_jpeg_that_is_closed_early_is_refused(files, name):
    data = files[name]
    for kept in (0.3, 0.6, 0.9, 0.98):
        closed = data[: int(kept * len(data))] + b"\xff\xd9"
        expected = ("the JPEG's coded data ends early; it is damaged or incomplete", "the JPEG ends before its last scans; it is incomplete")  # fmt: skip
        assert reason(closed, "full") in expected
        if name != "jpg_progressive":
            assert reason(closed, "cheap") == expected[0], "its last pixel is grey"


def test_a_progressive_jpeg_that_is_closed_between_two_scans_is_refused_at_any_level(files):
    """libjpeg itself finds nothing wrong with it."""
    data = files["jpg_progressive"]
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    tables = data.rfind(b"\xff\xc4", 0, scans[-2])
    for verify in ("full", "cheap"):
        assert reason(data[:tables] + b"\xff\xd9", verify) == "the JPEG ends before its last scans; it is incomplete"


def test_a_jpeg_of_many_scans_is_refused():
    """Each is a pass over all pixels, so that a few kilobytes could keep a decoder busy for hours."""
    data = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    assert reason(data[:-2] + data[last:-2] * 200 + b"\xff\xd9", "cheap") == "the JPEG has more than 100 scans; save it again"  # fmt: skip


@pytest.mark.parametrize("name", ["png", "webp", "webp_lossless", "avif", "jpg", "jpg_progressive", "jpg_restarts"])
def test_holes_of_zeros_are_refused_in_full(files, name):
    data = files[name]
    start, width = int(0.4 * len(data)), int(0.2 * len(data))
    reason(data[:start] + bytes(width) + data[start + width :], "full")


def test_changed_bits_of_a_png_are_refused_in_full_alone(files):
    data = bytearray(files["png"])
    place = data.find(b"IDAT") + 4 + 2000
    data[place] ^= 1
    assert reason(bytes(data), "full") == "the checksum of the PNG's IDAT chunk is wrong; the file is damaged"


def test_a_png_without_its_end(files, photograph):
    assert reason(files["png"][:-12], "cheap") == "the PNG ends before its IEND chunk; it is incomplete"
    assert np.array_equal(pixels(files["png"][:-12], "off"), np.asarray(photograph)), "its pixels were all there"


def test_what_follows_the_end_is_no_damage(files, photograph):
    for name in ("png", "jpg", "gif", "webp"):
        assert np.array_equal(pixels(files[name] + bytes(5000), "full"), pixels(files[name], "off"))
    assert np.array_equal(pixels(files["png"] + b"\0" * 300 + b"trailer", "full"), np.asarray(photograph))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 90)])
def test_flat_pictures_are_whole(photograph, colour):
    """Their coded data holds runs of zeros, and a JPEG of grey ends in the grey that stands for missing data."""
    flat = Image.new("RGB", (640, 400), colour)
    half = flat.copy()
    half.paste(photograph, (0, 0))
    for image in (flat, half):
        for name, (kind, options) in ENCODINGS.items():
            for further in ({}, {"optimize": True}) if kind == "JPEG" else ({}, {"method": 0, "quality": 100}) if name == "webp" else ({},):  # fmt: skip
                data = encoded(image, kind, **options | further)
                for verify in ("full", "cheap"):
                    assert pixels(data, verify).shape == (400, 640, 3), (name, further, verify)


def test_pictures_with_black_parts_are_whole(photograph):
    """A border, a corner, a silhouette: raw pixels of zero that no check may take for a missing tail."""
    levels = np.asarray(photograph).copy()
    levels[150:] = 0
    border = levels.copy()
    levels = np.asarray(photograph) // 4
    levels[-3:, 200:] = 0
    shadow = levels.copy()
    levels = np.zeros_like(levels)
    levels[20:150, 100:200] = 200
    levels[150, 100:130] = 200
    silhouette = levels
    for one in (border, shadow, silhouette, border[::-1]):
        for kind in ("BMP", "TIFF"):
            assert np.array_equal(pixels(encoded(Image.fromarray(np.ascontiguousarray(one)), kind), "full"), one)


def test_a_tail_of_compressed_tiff_strips(photograph):
    """libtiff writes the directory last, others first: then a zero-filled tail leaves a file that opens."""
    data = b"".join(np.asarray(photograph)[row].tobytes() for row in range(240))
    strip = zlib.compress(data)
    tags = [(256, 4, 1, 360), (257, 4, 1, 240), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3)]
    tags += [(278, 4, 1, 240), (279, 4, 1, len(strip))]
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags = sorted([*tags, (273, 4, 1, start)])
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)  # fmt: skip
    assert np.array_equal(pixels(head + strip, "full"), np.asarray(photograph))
    cut = len(strip) // 2
    assert reason(head + strip[:cut] + bytes(len(strip) - cut), "cheap") == "a part of the TIFF's coded data is zeros; it is damaged or incomplete"  # fmt: skip


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_holes_in_coded_tiff(photograph, compression):
    """Neither code has a checksum, and both read zeros as pixels."""
    data = encoded(photograph, "TIFF", compression=compression)
    assert np.array_equal(pixels(data, "cheap"), np.asarray(photograph))
    start = len(data) // 3
    reason(data[:start] + bytes(3000) + data[start + 3000 :], "cheap")
    flat = Image.new("RGB", (640, 400))
    assert not pixels(encoded(flat, "TIFF", compression=compression), "full").any()


def test_a_hole_in_a_deflated_tiff(photograph):
    """The decoder has all pixels before it comes to the checksum."""
    data = encoded(photograph, "TIFF", compression="tiff_adobe_deflate")
    assert np.array_equal(pixels(data, "full"), np.asarray(photograph))
    start = len(data) // 2
    assert reason(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :], "full") == "the checksum of the TIFF's coded data is wrong; it is damaged"  # fmt: skip


def test_a_webp_that_lost_its_metadata_chunk(photograph):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encoded(photograph, "WEBP", exif=exif)
    tail = len(data) - data.rfind(b"EXIF")
    assert reason(data[:-tail] + bytes(tail), "cheap") == "the chunks of the WebP do not fill it; it is damaged or incomplete"  # fmt: skip


def test_zeros_in_metadata_are_no_damage(photograph):
    exif = Image.Exif()
    exif[0x927C] = b"maker" + bytes(3000)
    for kind, options in (("JPEG", {}), ("WEBP", {}), ("AVIF", {}), ("PNG", {})):
        assert pixels(encoded(photograph, kind, exif=exif, **options), "full").shape == (240, 360, 3)


def test_animations_are_judged_by_their_files(photograph):
    frames = [photograph.rotate(90 * turn) for turn in range(3)]
    for kind in ("WEBP", "GIF", "PNG", "AVIF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100)
        assert pixels(buffer.getvalue(), "full").shape == (240, 360, 3), kind


def test_the_levels_of_the_switch():
    assert DataConfig(root="a").verify == "cheap"
    with pytest.raises(HybridTokenizerError, match=r"^data\.verify='fast' is not known; use full or cheap or off$"):
        DataConfig(root="a", verify="fast")
