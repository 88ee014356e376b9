"""The tokenizer of an evaluation's configuration: components, device, dtype, compilation and render size."""

from dataclasses import asdict
from typing import Any

import torch

from hybrid_tokenizer.data.config import say_other_size
from hybrid_tokenizer.hybrid import HybridTokenizer


def load_tokenizer(config: Any, device: torch.device, **replaced: str) -> HybridTokenizer:
    """The tokenizer that `config` describes. `replaced` components stand for those of the configuration."""
    tokenizer = HybridTokenizer.from_pretrained(config.model_name, **asdict(config.components) | replaced)
    option, side = (
        ("data.image_size", config.data.image_size) if hasattr(config, "data") else ("image_size", config.image_size)
    )
    say_other_size(option, side, tokenizer.native_size, "images are resized for the hybrid, and its images back")
    tokenizer.to(device, getattr(torch, config.dtype))
    asked = config.data.render_size if hasattr(config, "data") else config.render_size
    tokenizer.render_size = asked or tokenizer.diffusion.config.trained_size
    return tokenizer.compile() if config.compile else tokenizer
