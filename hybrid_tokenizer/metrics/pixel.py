"""Full-reference measures on pixels. Every function takes images in [-1, 1] and returns one float64 value per image.

Both inputs are first checked for range, clamped and rounded to 8 bits, as in a saved picture. A value does not depend
on the other images of the batch. Another value range raises HybridTokenizerError.

Examples:
    >>> decibels = hybrid_tokenizer.metrics.psnr(tokenizer.reconstruct(images), images)
    >>> decibels.shape, decibels.dtype
    (torch.Size([2]), torch.float64)
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hybrid_tokenizer.errors import optional
from hybrid_tokenizer.images import check_range, full_resolution_chunk, in_chunks, to_levels

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
MS_SSIM_LEAST_SIDE = (SSIM_WINDOW - 1) * 2**4 + 1
"""Five scales with an 11-pixel window need more than 160 pixels."""
LUMA = (0.299, 0.587, 0.114)
HIGH_FREQUENCY_FROM = 0.25
"""Cycles per pixel; Nyquist is 0.5."""
ENERGY_RATIO_FLOOR = 1e-6


def checked_levels(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert [-1, 1] to whole levels 0..255 in fp32. Raises on another value range."""
    check_range(images)
    return to_levels(images)


def image_by_image(
    function: Callable[[Float[Tensor, "c 3 h w"], Float[Tensor, "c 3 h w"]], Float[Tensor, "c"]],
    images: Float[Tensor, "b 3 h w"],
    references: Float[Tensor, "b 3 h w"],
) -> Float[Tensor, "b"]:
    """Apply `function` to the levels of both inputs, in float64. On a CPU it runs one image at a time, which stays in the cache."""
    chunk_size = full_resolution_chunk(images.device)
    pairs = torch.stack([images, references], dim=1)
    return in_chunks(
        lambda pair: function(*(checked_levels(side) for side in pair.unbind(1))), pairs, chunk_size
    ).double()


def psnr(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio in dB over the pixels and channels of each image; infinite where they are equal."""

    def decibels(ours: Float[Tensor, "c 3 h w"], theirs: Float[Tensor, "c 3 h w"]) -> Float[Tensor, "c"]:
        squared = (ours - theirs).square_().mean((1, 2, 3), dtype=torch.float64)  # squares of levels are exact in fp32
        return 10 * torch.log10(255**2 / squared)

    return image_by_image(decibels, images, references)


def ssim(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Structural similarity (Wang et al. 2004): Gaussian window 11, sigma 1.5, mean over RGB, data range 1 on [0, 1]."""
    return _ssim("ssim", images, references, 255)


def ms_ssim(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Multi-scale SSIM (Wang et al. 2003), five scales; sides of at least `MS_SSIM_LEAST_SIDE` pixels."""
    return _ssim("ms_ssim", images, references, 255)


def ssim_paper_compat(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """SSIM of 0..255 floats with data range 1, the setting that fits the paper's SSIM column. Not standard SSIM.

    It runs in fp32, as the usual implementations do. Cancellation in variances near 0 changes a photograph's value by up to
    5e-4 against fp64. For pictures that are almost flat it takes values past 1, which are clamped to [-1, 1].
    """
    return _ssim("ssim", images, references, 1).clamp(-1, 1)


def _ssim(
    name: Literal["ssim", "ms_ssim"],
    images: Float[Tensor, "b 3 h w"],
    references: Float[Tensor, "b 3 h w"],
    unit: int,
) -> Float[Tensor, "b"]:
    """Apply the function of pytorch-msssim to levels / `unit`, with data range 1."""
    with optional():
        import pytorch_msssim  # here, since a plain installation has none

    function = getattr(pytorch_msssim, name)
    options = {"data_range": 1.0, "size_average": False, "win_size": SSIM_WINDOW, "win_sigma": SSIM_SIGMA}

    def similarity(*sides: Float[Tensor, "c 3 h w"]) -> Float[Tensor, "c"]:
        # fp32 is within 5e-6 of fp64 on [0, 1]; the window's convolutions, most of the time, are faster in channels_last
        return function(*(side.div_(unit).contiguous(memory_format=torch.channels_last) for side in sides), **options)

    return image_by_image(similarity, images, references)


def high_frequency_energy(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Energy in the upper half of the spatial frequencies relative to the reference. 1 is right; below 1 is too smooth.

    The band is the radial frequencies of at least 0.25 cycles per pixel in the power spectrum of the luma, as in the
    spectral statistics of Durall et al. 2020 (CVPR, "Watch your up-convolution"); a Hann window keeps the picture's
    edges from leaking into it. Values under 1e-6 become 1e-6, so that a geometric mean exists. The value is NaN if the
    reference has no energy in the band.
    """
    energy = _band_energy(checked_levels(references))
    ratio = (_band_energy(checked_levels(images)) / energy).clamp_min(ENERGY_RATIO_FLOOR)
    return torch.where(energy > 0, ratio, torch.nan)


def _band_energy(levels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    luma = torch.einsum("bchw,c->bhw", levels.double() / 255, torch.tensor(LUMA, dtype=torch.float64).to(levels.device))
    height, width = luma.shape[-2:]
    vertical, horizontal = (
        torch.hann_window(side, periodic=False, dtype=luma.dtype, device=luma.device) for side in (height, width)
    )
    window = vertical[:, None] * horizontal
    power = torch.fft.rfft2((luma - luma.mean((1, 2), keepdim=True)) * window).abs().square()
    rows = torch.fft.fftfreq(height, dtype=luma.dtype, device=luma.device)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=luma.dtype, device=luma.device)
    band = (torch.hypot(rows, columns) >= HIGH_FREQUENCY_FROM).to(luma.dtype)
    band[:, 1 : (width + 1) // 2] *= 2  # these columns stand for those of the negative frequencies, too
    energy = (power * band).sum((1, 2))
    return torch.where(energy > 1e-12 * height * width, energy, 0)  # rounding residue of a flat picture
