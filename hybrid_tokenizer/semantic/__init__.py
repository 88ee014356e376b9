"""Branch II: the semantic tokenizer, SEED v1 by default.

Names are imported on first use: reading a configuration loads no model library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["SemanticConfig"],
        "contrastive": ["ContrastiveConfig", "ContrastiveHeads"],
        "tokenizer": ["SemanticOutput", "SemanticTokenizer"],
    },
)
