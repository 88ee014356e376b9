"""Damaged pictures through every door that takes one."""

import io
import os
import random
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import fuzz_driver
import numpy as np
import torch
from fuzz_bytes import DAMAGES
from fuzz_driver import Attempt, Door
from PIL import Image

from hybrid_tokenizer.apps.demo.uploads import read_upload
from hybrid_tokenizer.apps.user_study.prepare import StudyOptions, draw_images
from hybrid_tokenizer.apps.web.pages import WebError
from hybrid_tokenizer.corpus.config import ViewConfig
from hybrid_tokenizer.corpus.rows import cut_rows
from hybrid_tokenizer.corpus.sources import Entry, Fetched
from hybrid_tokenizer.data import TrainingStream, UnreadableImage, open_rgb, sample_photographs
from hybrid_tokenizer.data.config import CropConfig
from hybrid_tokenizer.data.open import DECODER_ERRORS, MAX_PIXELS, SHARE_OF_PIXELS
from hybrid_tokenizer.errors import HybridTokenizerError, first_line
from hybrid_tokenizer.evaluation.images import EvalImages
from hybrid_tokenizer.hybrid.pictures import to_batch
from hybrid_tokenizer.images import fit_square
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.setup import validation_batches

SIDE = 96
VISIBLE = 8
"""Levels of 8 bits from which a pixel counts as wrong."""
ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "png16": ("PNG", {}),
    "png_palette": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {"quality": 80}),
    "webp_lossless": ("WEBP", {"lossless": True}),
    "avif": ("AVIF", {"quality": 60}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "tif_lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tif_deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "jpg": ("JPEG", {"quality": 85}),
    "jpg_optimised": ("JPEG", {"quality": 90, "subsampling": 0, "optimize": True}),
    "jpg_progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "jpg_restarts": ("JPEG", {"quality": 85, "restart_marker_blocks": 8}),
    "jpg_grey": ("JPEG", {"quality": 85}),
}
MODES = {"png16": "I;16", "png_palette": "P", "jpg_grey": "L"}
PROMISED = 0.05
"""The largest wrong share of a picture that `full` lets through where something is missing, outside of RAW."""
RAW = ("bmp", "tif")
"""Their pixels may be any bytes, so a hole in them is a picture too; only a tail is found, unless it begins dark."""
MISSING = ("cut", "zero_tail", "hole", "closed_early")


def encodings(folder: Path) -> dict[str, bytes]:
    """One photograph in every form, with EXIF where that is held."""
    photograph = sample_photographs()["cat"].resize((240, 176))
    files = {}
    for name, (kind, options) in ENCODINGS.items():
        image = photograph
        if MODES.get(name) == "I;16":
            image = Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257)
        elif name in MODES:
            image = photograph.convert(MODES[name])
        if kind in ("PNG", "JPEG", "WEBP"):
            exif = Image.Exif()
            exif[0x010E], exif[0x0112] = "a description", 1
            options = options | {"exif": exif}
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def closed_early(data: bytes, draw: random.Random) -> bytes:
    """A JPEG whose end mark came too soon."""
    return data[: draw.randrange(len(data) // 4, len(data) - 2)] + b"\xff\xd9"


Read = Callable[[bytes, str, Path], np.ndarray]


def attempt(read: Read, files: dict[str, bytes], draw: random.Random, folder: Path, full: bool = True) -> Attempt:
    """One file damaged in one way; the result is compared with what the whole file gives at the same door."""
    name = draw.choice(sorted(files))
    damages = DAMAGES | ({"closed_early": closed_early} if name.startswith("jpg") else {})
    damage = draw.choice(sorted(damages))
    label = f"{name.split('_')[0]} {damage}"
    damaged = damages[damage](files[name], draw)
    try:
        result = read(damaged, name, folder)
    except (HybridTokenizerError, WebError) as error:
        assert "\n" not in str(error) and str(error).isprintable(), f"the refusal is not one line: {error!r}"
        return Attempt(label, True)
    whole = read(files[name], name, folder)
    wrong = 1.0
    if result.shape == whole.shape:
        wrong = float((np.abs(result.astype(int) - whole.astype(int)) > VISIBLE).any(-1).mean())
    if damaged == files[name] or (full and name.startswith("png")):
        promised = 0.0  # checksums
    elif full and damage in MISSING and name not in RAW:
        promised = PROMISED
    else:
        promised = 1.0
    return Attempt(label, False, wrong, promised)


def opened(data: bytes, name: str, folder: Path, verify: str) -> np.ndarray:
    return np.asarray(open_rgb(f"{name}.file", data=data, verify=verify))


def uploaded(data: bytes, name: str, folder: Path) -> np.ndarray:
    return np.asarray(fit_square(read_upload(data), SIDE))


def file_of(data: bytes, name: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for other in folder.glob("pictur*"):
        other.unlink()
    path = folder / os.fsdecode(b"pictur\xe9." + name.split("_")[0].removesuffix("16").encode())
    path.write_bytes(data)
    return path


def levels(image: torch.Tensor) -> np.ndarray:
    """[-1, 1], channels first, as 8 bits, channels last."""
    return ((image.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)


def evaluated(data: bytes, name: str, folder: Path) -> np.ndarray:
    path = file_of(data, name, folder)
    images = EvalImages.from_file(path, SIDE, say=lambda line: None, progress=False)
    return levels(images[0])


def trained(data: bytes, name: str, folder: Path) -> np.ndarray:
    """A stream of the file and a good one: what was skipped is named."""
    path = file_of(data, name, folder)
    good = folder / "good.png"
    if not good.exists():
        Image.new("RGB", (32, 32)).save(good)
    stream = TrainingStream([path, good], CropConfig(SIDE, (1.0, 1.0), False), seed=0)
    sample = stream[next(draw for draw in range(2) if stream._permute(0)[draw] == 0)]
    if sample["skipped"]:
        raise UnreadableImage(path, sample["skipped"][0][1])
    return levels(sample["images"])


def validated(data: bytes, name: str, folder: Path) -> np.ndarray:
    """As the only validation image of a training run."""
    path = file_of(data, name, folder)
    with redirect_stdout(io.StringIO()):
        (batch,) = validation_batches([path], SIDE, TrainingConfig(), "full")
    return levels(batch["images"][0])


def studied(data: bytes, name: str, folder: Path) -> np.ndarray:
    """As the only picture of a user study."""
    path = file_of(data, name, folder / "study")
    images = draw_images(StudyOptions(images=path.parent, num_sets=1, image_size=SIDE), say=lambda line: None)
    return levels(images[0])


def encoded(data: bytes, name: str, folder: Path) -> np.ndarray:
    """As a path that `HybridTokenizer.encode` is given."""
    return levels(to_batch(file_of(data, name, folder), SIDE, "auto", torch.device("cpu"))[0])


def handed_over(data: bytes, name: str, folder: Path) -> np.ndarray:
    """As a PIL image that somebody opened and did not decode yet."""
    try:
        image = Image.open(io.BytesIO(data))
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:  # refused by Pillow itself
        raise UnreadableImage(Path(name), first_line(error)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return levels(to_batch(image, SIDE, "auto", torch.device("cpu"))[0])


def tokenized(data: bytes, name: str, folder: Path, draft: bool = False) -> np.ndarray:
    """As rows of a corpus."""
    entry = Entry(name, "file", name, 0, 0, [], [])
    _, pixels = cut_rows([Fetched(entry, data, [])], ViewConfig(image_size=SIDE, jpeg_draft=draft))
    if not len(pixels):
        raise UnreadableImage(Path(name), "skipped")
    return pixels[0]


def door(name: str, read: Read, full: bool = True) -> Door:
    return Door(name, encodings, lambda files, draw, folder: attempt(read, files, draw, folder, full), share=0.5)


LARGE = {
    "L": ("PNG",), "I;16": ("PNG", "TIFF"), "RGB": ("PNG", "JPEG", "BMP", "WEBP"), "RGBA": ("PNG", "WEBP"), "LA": ("PNG",),
    "P": ("PNG", "GIF"), "1": ("PNG",), "CMYK": ("JPEG", "TIFF"),
}  # fmt: skip
"""Modes, and formats that hold them."""


def large(whole: None, draw: random.Random, folder: Path) -> Attempt:
    """A whole picture of any shape, around the limits; what counts is the memory that it takes."""
    mode = draw.choice(sorted(LARGE))
    kind = draw.choice(LARGE[mode])
    pixels = MAX_PIXELS * draw.choice([0.24, 0.49, 0.98, 1.0, 1.02]) * SHARE_OF_PIXELS.get(kind, 1)
    height = int((pixels / draw.choice([1, 1.5, 4, 30, 33])) ** 0.5)
    size = (int(pixels / height), height)
    options: dict[str, Any] = {"JPEG": {"quality": 30, "progressive": draw.random() < 0.5}, "WEBP": {"lossless": True, "method": 0}}.get(kind, {})  # fmt: skip
    if mode in ("RGB", "L", "1", "P") and kind == "PNG":
        options["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    buffer = io.BytesIO()
    try:
        Image.new(mode, size[:: draw.choice([1, -1])], draw.choice([0, 1])).save(buffer, kind, **options)
    except (OSError, ValueError, MemoryError):  # the format holds no picture of this size
        return Attempt(f"{kind} {mode} unwritable", True)
    data = buffer.getvalue()
    del buffer
    fuzz_driver.restart_measuring()
    read = draw.choice([partial(opened, verify="full"), partial(opened, verify="cheap"), evaluated, trained, encoded])
    try:
        read(data, f"{kind.lower()}", folder)
    except HybridTokenizerError as error:
        assert "\n" not in str(error)
        return Attempt(f"{kind} {mode}", True)
    return Attempt(f"{kind} {mode}", False)


DOORS = [
    Door("large pictures", lambda folder: None, large, share=0.015),
    door("pictures, full", partial(opened, verify="full")),
    door("pictures, cheap", partial(opened, verify="cheap"), full=False),
    door("demo", uploaded),
    door("evaluation", evaluated),
    door("training", trained, full=False),
    door("validation", validated),
    door("study", studied),
    door("encode", encoded),
    door("PIL images", handed_over),
    door("corpus", tokenized),
    door("corpus, drafts", partial(tokenized, draft=True)),
]
