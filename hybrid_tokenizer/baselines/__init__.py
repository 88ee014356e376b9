"""Other people's tokenizers and codecs, each an ImageTokenizer."""

from hybrid_tokenizer.baselines.codec import Codec

__all__ = ["Codec"]
