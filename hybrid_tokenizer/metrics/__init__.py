"""Measures of images in [-1, 1] against references in [-1, 1]; a value an image, in float64.

`pixel` (PSNR, SSIM, ...), `perceptual` (feature distance, HaarPSI, MDSI), `codebook` (usage and perplexity),
`statistics` (means and bootstrap intervals). Only `perceptual.EfficientNetDistance` carries weights.
"""
