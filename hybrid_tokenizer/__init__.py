"""hybrid_tokenizer: semantic tokens and guide tokens in, photographs out.

Names are imported on first use, so that `import hybrid_tokenizer` loads no torch.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["metrics"],
    submod_attrs={
        "baselines.loading": ["load_baseline"],
        "baselines.registry": ["list_baselines"],
        "diffusion": ["DiffusionDecoder"],
        "errors": ["HybridTokenizerError"],
        "guide": ["GuideTokenizer"],
        "hybrid": ["HybridTokenizer"],
        "presets": ["list_presets"],
        "semantic": ["SemanticTokenizer"],
        "tokens": ["HybridTokens", "HybridVocabulary"],
    },
)
