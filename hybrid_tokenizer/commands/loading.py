"""The tokenizer of an evaluation's configuration: components, device, dtype, compilation and render size."""

from dataclasses import asdict
from typing import Any

import torch

from hybrid_tokenizer.hybrid import HybridTokenizer


def load_tokenizer(config: Any, device: torch.device, **replaced: str) -> HybridTokenizer:
    """The tokenizer that `config` describes. `replaced` components stand for those of the configuration."""
    tokenizer = HybridTokenizer.from_pretrained(config.model_name, **asdict(config.components) | replaced)
    tokenizer.to(device, getattr(torch, config.dtype))
    asked = config.data.render_size if hasattr(config, "data") else config.render_size
    tokenizer.render_size = asked or tokenizer.diffusion.config.trained_size
    return tokenizer.compile() if config.compile else tokenizer
