"""Branch I: the guide tokenizer, its losses and its warm starts.

Names are imported on first use: reading a config does not pull in diffusers.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "GuideConfig": "config",
    "GuideOutput": "tokenizer",
    "GuideTokenizer": "tokenizer",
    "DiscriminatorConfig": "discriminator",
    "PatchDiscriminator": "discriminator",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hybrid_tokenizer.guide' has no attribute {name!r}")
    return getattr(import_module(f"hybrid_tokenizer.guide.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
