"""Other people's tokenizers and codecs, each an ImageTokenizer. Names are imported on first use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"codec": ["Codec"], "loading": ["load_baseline"], "registry": ["BASELINES", "list_baselines"]},
)
