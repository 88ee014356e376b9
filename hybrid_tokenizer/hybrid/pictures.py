"""Conversion of paths, PIL images, arrays and tensors to batches in [-1, 1], and of decoded batches to output types."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from hybrid_tokenizer.data.colour import to_upright_rgb
from hybrid_tokenizer.data.open import DECODER_ERRORS, check_size, open_rgb
from hybrid_tokenizer.data.verify import check_file
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, shown
from hybrid_tokenizer.images import check_range, fit_square, from_pil, from_uint8, to_pil, to_uint8

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
Pictures = Picture | Sequence[Picture]
Resize = Literal["auto", "crop", "pad"] | None
RESIZES = ("auto", "crop", "pad", None)
OutputType = Literal["pt", "pil", "np"]
OUTPUT_TYPES = ("pt", "pil", "np")
Output = Float[Tensor, "b 3 H W"] | list[Image.Image] | UInt8[np.ndarray, "b H W 3"]
LAYOUTS = "(height, width, 3), (3, height, width), or a batch of either"


def to_batch(pictures: Any, side: int, resize: Any, device: torch.device) -> Float[Tensor, "b 3 h w"]:
    """Convert pictures of any kind to one fp32 batch on `device`.

    Raises:
        HybridTokenizerError: a picture of no known kind, layout or value range, or pictures of several sizes.
    """
    if not any(resize is known or resize == known for known in RESIZES):
        raise HybridTokenizerError(f"resize={shown(resize)} is unknown; use 'crop', 'pad', None, or leave it out")
    listed = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    if not listed:
        raise HybridTokenizerError("there are no images to encode; give at least one")
    batches = [batch_of(picture, side, resize).to(device, torch.float32) for picture in listed]
    sizes = {f"{batch.shape[-2]}x{batch.shape[-1]}": None for batch in batches}
    if len(sizes) > 1:
        raise HybridTokenizerError(
            f"the images have sizes {', '.join(sizes)} (height x width), and tokens of one batch are of one size; "
            "pass resize='crop' or resize='pad', or encode them one by one"
        )
    return batches[0] if len(batches) == 1 else torch.cat(batches)


def batch_of(picture: Any, side: int, resize: Resize) -> Float[Tensor, "b 3 h w"]:
    """One path, PIL image, array or tensor as floats in [-1, 1]. Tensors and arrays may be batches themselves."""
    if isinstance(picture, (str, os.PathLike)):
        picture = open_rgb(Path(picture).expanduser())
        return from_pil(fitted(picture, side, resize))[None]
    if isinstance(picture, Image.Image):
        return from_pil(fitted(upright(picture), side, resize))[None]
    if isinstance(picture, (np.ndarray, Tensor)):
        batch = from_array(picture)
        if resize in ("auto", None) or tuple(batch.shape[-2:]) == (side, side):
            return batch
        return torch.stack([from_pil(fitted(to_pil(image), side, resize)) for image in batch])
    raise HybridTokenizerError(
        f"an image is {shown(type(picture).__name__)}, expected a path, a PIL image, an array or a tensor, or a list of these"
    )


def upright(image: Image.Image) -> Image.Image:
    """An opened PIL image as `open_rgb` gives it: RGB, upright, in sRGB, within the limits on size, and its file undamaged where
    it has not been decoded yet."""
    try:
        check_size(image)
        file = getattr(image, "fp", None)  # until the picture is decoded
        check = None if file is None else check_file(file, image, "full")
        image.load()
        if check is not None:
            check(image)
        return to_upright_rgb(image, "", image.copy)
    except DECODER_ERRORS as error:
        raise HybridTokenizerError(f"the PIL image of mode {image.mode} cannot be read: {first_line(error)}") from None


def fitted(image: Image.Image, side: int, resize: Resize) -> Image.Image:
    """Fit the picture to a square of `side` pixels. None leaves it unchanged."""
    if resize is None or image.size == (side, side):
        return image
    if resize == "pad":
        return ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC)
    return fit_square(image, side)


def from_array(values: np.ndarray | Tensor) -> Float[Tensor, "b 3 h w"]:
    """An array or a tensor as floats in [-1, 1], channels first. Floats keep their values."""
    if isinstance(values, np.ndarray):
        try:
            values = torch.from_numpy(np.require(values, requirements=("C", "W")))
        except TypeError:
            raise HybridTokenizerError(f"an image is an array of {values.dtype}, expected uint8 or floats") from None
    batch = values[None] if values.ndim == 3 else values
    if batch.ndim != 4 or 3 not in (batch.shape[1], batch.shape[3]):
        raise HybridTokenizerError(
            f"an image has shape {tuple(values.shape)}, expected {LAYOUTS}; convert grey and transparent pictures with "
            "PIL's image.convert('RGB')"
        )
    if batch.shape[1] != 3:
        batch = batch.permute(0, 3, 1, 2)
    if not batch.numel():
        raise HybridTokenizerError(f"an image has shape {tuple(values.shape)}: there are no images to encode; give one")
    if batch.dtype == torch.uint8:
        return from_uint8(batch)
    if not batch.is_floating_point():
        raise HybridTokenizerError(
            f"an image is of {values.dtype}, expected uint8 in 0..255 or floats in [-1, 1]; convert it to one of them"
        )
    check_range(batch)
    low, high = batch.aminmax()
    if low >= 0:
        warnings.warn(
            f"image values span {low.item():.3g} to {high.item():.3g}: none is below 0, as in images in [0, 1], and [-1, 1] "
            "is expected; if they are in [0, 1], give 2 * images - 1",
            stacklevel=2,
        )
    return batch


def check_output_type(output_type: Any) -> None:
    """Raise for an output type that `to_output` does not know."""
    if output_type not in OUTPUT_TYPES:
        raise HybridTokenizerError(f"output_type={shown(output_type)} is unknown; use {', '.join(OUTPUT_TYPES)}")


def to_output(images: Float[Tensor, "b 3 H W"], output_type: OutputType) -> Output:
    """Convert a batch to `output_type`: unchanged (pt), PIL images (pil), or a uint8 array with channels last (np)."""
    if output_type == "pil":
        return [to_pil(image) for image in images]
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else images
