"""Vector quantizers with one interface.

Names are imported on first use: reading a configuration loads no model library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "codebooks": [
            "EmaQuantizer",
            "LibraryQuantizer",
            "Quantized",
            "VectorQuantizer",
            "build_quantizer",
            "nearest_codes",
            "rows_at_once",
            "vq_loss",
        ],
        "config": ["QuantizerConfig"],
    },
)
