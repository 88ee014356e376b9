"""Branch III: guide image and generation embeddings to an image, by Stable Diffusion and DDIM inversion.

Names are imported on first use: reading a configuration loads no model library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["DecodeOptions", "DecodeOverrides", "DiffusionConfig"],
        "ddim": ["q_sample", "training_target"],
        "decoder": ["DiffusionDecoder"],
        "scheduler": ["Schedule"],
    },
)
