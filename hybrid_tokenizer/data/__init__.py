"""Photographs from disk: folders, captions, built-in samples, and the stream that training draws from."""

from hybrid_tokenizer.data.captions import CaptionedImage, read_captions
from hybrid_tokenizer.data.folders import UnreadableImage, find_images, hold_out, open_rgb
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.data.training import TrainingStream, build_loader

__all__ = [
    "CaptionedImage",
    "TrainingStream",
    "UnreadableImage",
    "build_loader",
    "find_images",
    "hold_out",
    "open_rgb",
    "read_captions",
    "sample_photographs",
]
