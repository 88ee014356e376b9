"""Branch I: the guide tokenizer, its losses and its warm starts."""

from hybrid_tokenizer.guide.config import GuideConfig
from hybrid_tokenizer.guide.tokenizer import GuideOutput, GuideTokenizer

__all__ = ["GuideConfig", "GuideOutput", "GuideTokenizer"]
