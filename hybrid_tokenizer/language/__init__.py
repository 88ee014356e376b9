"""Language models on hybrid tokens: vocabulary, constrained decoding, packing, the training objective, generation.

Names are imported on first use: reading a configuration does not load transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "constrained": ["ImageGrammar"],
        "generate": ["complete", "describe", "draw"],
        "model": ["LanguageModel", "load_language_model"],
        "vocabulary": ["add_image_tokens", "load_vocabulary", "read_sequence", "resize_embeddings", "save_vocabulary"],
    },
)
