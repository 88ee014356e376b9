import pickle
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from hybrid_tokenizer.data import UnreadableImage, find_images, hold_out, open_rgb, sample_photographs
from hybrid_tokenizer.errors import HybridTokenizerError

COLOURS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [250, 240, 230], [128, 128, 128]]], dtype=np.uint8
)
"""2 rows, 3 columns: turned images differ in size."""


def picture(height=20, width=30, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    written = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def test_folders_nested_flat_sorted_and_hidden(tmp_path):
    names = ["b.JPG", "a.png", "n01/z.jpeg", "n01/deep/er/y.webp", "n02.gif", "c d/é.bmp"]
    left_out = [".hidden.png", ".cache/x.png", "n01/.thumbs/x.jpg", "notes.txt", "captions.jsonl", "n01/README"]
    for name in names + left_out:
        path = tmp_path / ".dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    root = tmp_path / ".dataset"  # a hidden root is the user's choice
    (root / "folder.png").mkdir()
    found = [path.relative_to(root).as_posix() for path in find_images(root)]
    assert found == sorted(names)
    assert find_images(str(root)) == find_images(root)


@pytest.mark.parametrize(("name", "words"), [("absent", "not a folder"), ("file.png", "not a folder"), ("empty", "no images")])  # fmt: skip
def test_folders_without_images_are_refused(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(HybridTokenizerError, match=words) as error:
        find_images(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def save(folder, image, name, **options):
    image.save(folder / name, **options)
    opened = open_rgb(folder / name)
    assert opened.mode == "RGB"
    return np.asarray(opened).astype(int)


def test_every_mode_becomes_rgb(tmp_path):
    colours = Image.fromarray(COLOURS)
    grey = colours.convert("L")
    as_rgb = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    assert np.array_equal(save(tmp_path, colours, "rgb.png"), COLOURS)
    assert np.array_equal(save(tmp_path, grey, "grey.png"), as_rgb)
    assert np.array_equal(save(tmp_path, colours.convert("P", palette=Image.Palette.ADAPTIVE), "palette.png"), COLOURS)
    bits = Image.fromarray(np.array([[0, 255, 0], [255, 0, 255]], dtype=np.uint8)).convert("1")
    assert np.array_equal(save(tmp_path, bits, "bits.png")[..., 0], [[0, 255, 0], [255, 0, 255]])
    cmyk = Image.fromarray(np.full((16, 24, 3), (200, 60, 90), dtype=np.uint8)).convert("CMYK")
    assert np.abs(save(tmp_path, cmyk, "cmyk.jpg", quality=95) - [200, 60, 90]).max() <= 4


def test_alpha_is_laid_over_white(tmp_path):
    alpha = np.array([[0, 255, 128], [255, 0, 64]], dtype=np.uint8)
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
    expected[0, 0] = 255
    assert np.array_equal(save(tmp_path, palette, "clear.png", transparency=clear), expected)
    assert np.array_equal(save(tmp_path, Image.fromarray(COLOURS), "key.png", transparency=(255, 0, 0)), expected)


def test_16_bit_grey_keeps_its_range(tmp_path):
    levels = np.array([[0, 257, 1000], [32768, 65278, 65535]], dtype=np.uint16)
    opened = save(tmp_path, Image.fromarray(levels), "deep.png")
    assert np.array_equal(opened[..., 0], np.round(levels / 257)) and np.ptp(opened, axis=2).max() == 0
    with pytest.raises(UnreadableImage, match="floats"):
        save(tmp_path, Image.fromarray(np.ones((2, 3), dtype=np.float32)), "float.tif")
    with pytest.raises(UnreadableImage, match=r"0\.\.65535"):
        save(tmp_path, Image.fromarray(np.full((2, 3), 70000, dtype=np.int32)), "int.tif")


@pytest.mark.parametrize(("orientation", "turned"), [(1, COLOURS), (3, COLOURS[::-1, ::-1]), (6, np.rot90(COLOURS, -1)), (8, np.rot90(COLOURS))])  # fmt: skip
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(save(tmp_path, Image.fromarray(COLOURS), "turned.png", exif=exif), turned)


def test_one_pixel_opens(tmp_path):
    assert save(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "one.png").tolist() == [[[1, 2, 3]]]


def test_refusals_name_path_and_reason(tmp_path):
    whole = tmp_path / "whole.jpg"
    picture(200, 300).save(whole)
    files = {
        "truncated.jpg": whole.read_bytes()[:2000],
        "text.png": b"not an image at all\nreally\n",
        "empty.png": b"",
        "huge.png": png_header(60000, 60000),
        "large.png": png_header(9000, 9000),
        "nothing.png": png_header(0, 5),
    }
    reasons = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage) as error:
            open_rgb(tmp_path / name)
        assert error.value.path == tmp_path / name and "\n" not in str(error.value)
        assert str(error.value) == f"{tmp_path / name}: {error.value.reason}"
        reasons[name] = error.value.reason
    assert "truncated" in reasons["truncated.jpg"] and "64000000 pixels" in reasons["huge.png"]
    assert "9000x9000" in reasons["large.png"]
    with pytest.raises(UnreadableImage, match="No such file"):
        open_rgb(tmp_path / "absent.png")
    with pytest.raises(UnreadableImage, match="30x20 is over the limit of 599"):
        save(tmp_path, picture(), "small.png")
        open_rgb(tmp_path / "small.png", max_pixels=599)


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


def test_hold_out_depends_on_relative_paths_alone(tmp_path):
    def paths(root, count):
        return [root / f"n{index % 7:02d}" / f"{index:04d}.png" for index in range(count)]

    kept, held = hold_out(paths(tmp_path, 1000), tmp_path)
    assert len(held) == 20 and sorted(kept + held) == sorted(paths(tmp_path, 1000))
    assert kept == [path for path in paths(tmp_path, 1000) if path in set(kept)], "order is kept"
    moved = hold_out(paths(tmp_path / "elsewhere", 1000)[::-1], tmp_path / "elsewhere")[1]
    relative = {path.relative_to(tmp_path) for path in held}
    assert {path.relative_to(tmp_path / "elsewhere") for path in moved} == relative
    grown = hold_out(paths(tmp_path, 1100), tmp_path)[1]
    assert len(set(grown) - set(held)) <= 6, "100 further files change the held-out part by their own share"


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (15, 7), (16, 8), (399, 8), (1000, 20)])
def test_hold_out_sizes(tmp_path, count, held):
    parts = hold_out([tmp_path / f"{index}.png" for index in range(count)], tmp_path)
    assert (len(parts[0]), len(parts[1])) == (count - held, held)


def test_one_image_can_not_be_split(tmp_path):
    with pytest.raises(HybridTokenizerError, match="at least 2"):
        hold_out([tmp_path / "a.png"], tmp_path)


def test_sample_photographs():
    samples = sample_photographs()
    assert len(samples) >= 7 and list(samples) == sorted(samples)
    for image in samples.values():
        assert image.mode == "RGB" and min(image.size) >= 256
        assert np.ptp(np.asarray(image).astype(int), axis=2).mean() > 5, "in colour"
