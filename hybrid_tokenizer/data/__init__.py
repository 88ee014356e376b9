"""Photographs from disk: folders, captions, built-in samples, and the stream that training draws from.

Names are imported on first use: reading a configuration loads no image library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "captions": ["CaptionedImage", "read_captions"],
        "folders": ["find_images", "hold_out", "mark_output"],
        "open": ["UnreadableImage", "open_rgb"],
        "samples": ["sample_photographs"],
        "training": ["TrainingStream", "build_loader"],
    },
)
