"""hybrid_tokenizer: semantic tokens and guide tokens in, photographs out.

Names are imported on first use, so that `import hybrid_tokenizer` does not pull in diffusers and transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "HybridTokenizer": "hybrid_tokenizer.hybrid",
    "HybridTokens": "hybrid_tokenizer.tokens",
    "HybridVocabulary": "hybrid_tokenizer.tokens",
    "GuideTokenizer": "hybrid_tokenizer.guide",
    "SemanticTokenizer": "hybrid_tokenizer.semantic",
    "DiffusionDecoder": "hybrid_tokenizer.diffusion",
    "HybridTokenizerError": "hybrid_tokenizer.errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hybrid_tokenizer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
