"""Language models on hybrid tokens: vocabulary, constrained decoding, packing, the training objective, generation.

Names are imported on first use: reading a configuration does not load transformers.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "add_image_tokens": "vocabulary",
    "load_vocabulary": "vocabulary",
    "resize_embeddings": "vocabulary",
    "save_vocabulary": "vocabulary",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
