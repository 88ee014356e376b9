"""Tokenizers whose weights are in the package."""

from pathlib import Path

INDEX_NAME = "model_index.json"
PRESETS = Path(__file__).parent


def list_presets() -> list[str]:
    """The presets whose weights are in the package: the names that `HybridTokenizer.from_pretrained` takes.

    Examples:
        >>> hybrid_tokenizer.list_presets()
        ['tiny']
    """
    return sorted(path.parent.name for path in PRESETS.glob(f"*/{INDEX_NAME}"))
