"""Value ranges and resizing. No other module converts between ranges or resizes images.

Inside the package images are float tensors in [-1, 1], layout b 3 h w. PIL images and uint8 arrays exist at the edges.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num, UInt8
from PIL import Image
from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RANGE_SLACK = 1.0  # decoders overshoot [-1, 1]; values beyond [-2, 2] mean another value range
CPU_PIXELS_AT_ONCE = 2 * 256 * 256
LONG_STRIP = 4  # sides to one


def from_pil(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An RGB PIL image as float in [-1, 1]."""
    if image.mode != "RGB":
        raise HybridTokenizerError(f"image mode is {image.mode!r}, expected 'RGB'; call image.convert('RGB') first")
    return from_uint8(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def to_pil(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """Float in [-1, 1] as an RGB PIL image, clamped and rounded."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def from_uint8(images: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """0..255 to [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """[-1, 1] to 0..255, clamped and rounded to nearest (truncation would darken by half a level)."""
    return to_levels(images).to(torch.uint8)


def to_levels(images: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """The whole numbers of `to_uint8`, still in fp32."""
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_()


def to_unit(images: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """[-1, 1] to [0, 1], the range of metrics. Not clamped."""
    return (images + 1) / 2


def check_range(images: Float[Tensor, "*b 3 h w"]) -> None:
    """Raise when `images` cannot be in [-1, 1]: 0..255 floats, or non-finite values.

    Images in [0, 1] lie inside [-1, 1] and cannot be told apart from dark-free images; callers convert explicitly.
    """
    low, high = images.aminmax()
    if not (low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK):  # also false for NaN
        raise HybridTokenizerError(
            f"image values span {low.item():.4g} to {high.item():.4g}, expected [-1, 1]; "
            "convert with hybrid_tokenizer.images.from_uint8 or divide 0..255 floats by 127.5 and subtract 1"
        )


def clamp_finite(images: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Clamp to [-1, 1], with NaN in place of infinities, which must not become white pixels. Does not synchronise with
    the device."""
    return torch.where(images.isfinite(), images.clamp(-1, 1), torch.nan)


def check_computed(values: Float[Tensor, "..."], branch: str) -> Float[Tensor, "..."]:
    """Return `values` if all are finite. Otherwise raise, naming the branch of the model that computed them."""
    if values.is_meta or not values.numel() or all(bound.isfinite() for bound in values.aminmax()):
        return values
    raise HybridTokenizerError(
        f"the {branch} branch computed values that are not finite; its weights are damaged, or pass the range of the dtype "
        "that it was cast to: load it again, and keep it in float32"
    )


def resize_area(images: Float[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 H W"]:
    """`Resize` of eq. 4: the antialiased mean over each target pixel's area. Losses, warm starts and controls all use it."""
    return F.interpolate(images, size=size, mode="area")


def resize_bicubic(images: Float[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 H W"]:
    """Antialiased bicubic resize, up or down. It may overshoot [-1, 1] slightly."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images.float(), size=size, mode="bicubic", align_corners=False, antialias=True).to(
        images.dtype
    )


def normalize_clip(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """[-1, 1] to CLIP's channel statistics (the input of BLIP-2's vision encoder)."""
    mean, std = (  # a blocking copy would make the host wait for all that a GPU still has to do
        torch.tensor(values, dtype=images.dtype).to(images.device, non_blocking=True).view(3, 1, 1)
        for values in (CLIP_MEAN, CLIP_STD)
    )
    return (to_unit(images) - mean) / std


def in_chunks(
    function: Callable[[Num[Tensor, "c ..."]], Num[Tensor, "c ..."]],
    batch: Num[Tensor, "b ..."],
    chunk_size: int | None,
) -> Num[Tensor, "b ..."]:
    """Apply `function` to a batch in chunks of at most `chunk_size`. None takes the whole batch at once."""
    if chunk_size is None or len(batch) <= chunk_size:
        return function(batch)
    return torch.cat([function(chunk) for chunk in batch.split(chunk_size)])


def in_fixed_chunks(
    function: Callable[[Num[Tensor, "c ..."]], tuple[Num[Tensor, "c ..."], ...]],
    batch: Num[Tensor, "b ..."],
    chunk_size: int,
) -> tuple[Num[Tensor, "b ..."], ...]:
    """Apply `function` to chunks of exactly `chunk_size` rows; zeros fill the last one up.

    A GPU chooses its kernels by shape, and each kernel rounds differently. With one shape a row's result does not depend on
    how many rows there are.
    """
    parts = []
    for chunk in batch.split(chunk_size):
        missing = chunk.new_zeros(chunk_size - len(chunk), *chunk.shape[1:])
        parts.append([value[: len(chunk)] for value in function(torch.cat([chunk, missing]))])
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def full_resolution_chunk(device: torch.device, size: tuple[int, int] | None = None) -> int | None:
    """How many images to run together through convolutions at full resolution.

    On a CPU it is one: the activations then stay in the cache, and allocations stay below the size at which each one
    maps newly zeroed pages. A batch of 8 takes 1.2 to 1.4 times as long per image. With `size` = (height, width) it is
    as many images as hold the pixels of two images of 256 px, which is fastest where convolutions start at half the
    resolution, as in the guide's encoder.
    """
    if device.type != "cpu":
        return None
    return 1 if size is None else max(1, CPU_PIXELS_AT_ONCE // (size[0] * size[1]))


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` (up or down, antialiased bicubic), then the centre `size` x `size`.

    For a long strip only the part that is kept is resized, so that strips of any length need the memory of one square.
    The two ways differ by rounding, so ordinary pictures keep the first.
    """
    width, height = image.size
    scale = size / min(width, height)
    resized = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    if max(resized) <= LONG_STRIP * size:
        whole = image.resize(resized, Image.Resampling.BICUBIC)
        return whole.crop((left, top, left + size, top + size))
    across, down = width / resized[0], height / resized[1]
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
