"""What is cut from an image: the centre, or seeded random crops and flips."""

import hashlib
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybrid_tokenizer.corpus.config import ViewConfig
from hybrid_tokenizer.data.training import apply_crop, draw_crop
from hybrid_tokenizer.images import fit_square


class View(NamedTuple):
    """One square of an image."""

    number: int
    """0 is the centre; random crops count from 1."""
    image: Image.Image
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the whole upright image."""
    flipped: bool


def cut_views(image: Image.Image, key: str, config: ViewConfig, size: tuple[int, int] | None = None) -> list[View]:
    """The views of an image. They depend on the image, its key and the configuration alone.

    size: width and height of the whole image, where `image` was decoded smaller.
    """
    width, height = size or image.size
    if config.views == 0:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return [View(0, fit_square(image, config.image_size), (left, top, left + side, top + side), False)]
    across, down = image.width / width, image.height / height
    name = int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:8], "little")
    views = []
    for number in range(1, config.views + 1):
        rng = np.random.default_rng((config.seed, name, number))
        box, flipped = draw_crop((width, height), config.crop, rng)
        inside = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        views.append(View(number, apply_crop(image, config.image_size, inside, flipped), box, flipped))
    return views


def row_id(key: str, view: int) -> str:
    """What a row of the shards is called."""
    return f"{key}#{view}" if view else key
