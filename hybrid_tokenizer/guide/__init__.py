"""Branch I: the guide tokenizer, its losses and its warm starts."""

from hybrid_tokenizer.guide.config import GuideConfig
from hybrid_tokenizer.guide.discriminator import DiscriminatorConfig, PatchDiscriminator
from hybrid_tokenizer.guide.tokenizer import GuideOutput, GuideTokenizer
from hybrid_tokenizer.guide.warm_start import warm_start

__all__ = ["DiscriminatorConfig", "GuideConfig", "GuideOutput", "GuideTokenizer", "PatchDiscriminator", "warm_start"]
