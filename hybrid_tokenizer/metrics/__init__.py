"""Measures of images in [-1, 1] against references in [-1, 1], one float64 value per image.

`pixel` has PSNR, SSIM and others. `weighted` has LPIPS, FID and others whose weights the user provides. `preference`
scores an image against a caption. `codebook` measures usage and perplexity. `statistics` computes bootstrap intervals.
Feature distances that are also training losses are in `hybrid_tokenizer.perceptual`. Names are imported on first use.
"""

from typing import Any

import lazy_loader

from hybrid_tokenizer.errors import optional

_attached, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "agreement": ["krippendorff_alpha"],
        "codebook": ["CodebookUse", "codebook_usage", "perplexity"],
        "pixel": ["high_frequency_energy", "ms_ssim", "psnr", "ssim", "ssim_paper_compat"],
        "preference": ["CLIPScore", "HPSv2", "ImageReward", "PickScore"],
        "statistics": ["bootstrap_interval"],
        "weighted": ["Frechet", "LPIPS"],
    },
)


def __getattr__(name: str) -> Any:
    with optional():
        return _attached(name)
