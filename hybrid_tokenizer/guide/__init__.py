"""Branch I: the guide tokenizer, its losses and its warm starts.

Names are imported on first use: reading a configuration loads no model library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["GuideConfig"],
        "discriminator": ["DiscriminatorConfig", "PatchDiscriminator"],
        "tokenizer": ["GuideOutput", "GuideTokenizer"],
    },
)
