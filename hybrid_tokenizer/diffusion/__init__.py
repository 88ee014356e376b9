"""Branch III: guide image and generation embeddings to an image, by Stable Diffusion and DDIM inversion."""

from hybrid_tokenizer.diffusion.config import DecodeOptions, DecodeOverrides, DiffusionConfig
from hybrid_tokenizer.diffusion.ddim import q_sample, training_target
from hybrid_tokenizer.diffusion.decoder import DiffusionDecoder
from hybrid_tokenizer.diffusion.scheduler import Schedule

__all__ = [
    "DecodeOptions", "DecodeOverrides", "DiffusionConfig", "DiffusionDecoder", "Schedule", "q_sample", "training_target",
]  # fmt: skip
