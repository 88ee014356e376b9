"""Small guide tokenizers with weights that are nowhere trivial."""

from typing import Any

import torch
from torch import Tensor, nn

from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.quantizers import QuantizerConfig


def jitter(module: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, biases and norms included, and spread the codes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return module


def small_config(**changes: Any) -> GuideConfig:
    """f4 under group norm: 3 levels, 4 codes wide."""
    fields = {
        "image_size": 32, "encoder_channels": [8, 8, 16], "decoder_channels": [8, 8, 16], "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention": [2], "decoder_attention": [2], "z_channels": 4, "norm_type": "group",
        "norm_num_groups": 4, "stem_channels": 32, "quantizer": QuantizerConfig(codebook_size=64, codebook_dim=4),
    }  # fmt: skip
    return GuideConfig(**{**fields, **changes})


def small_movq(**changes: Any) -> GuideConfig:
    """f8 under spatial norm, MoVQ's shape."""
    fields = {
        "image_size": 32, "encoder_channels": [32, 32, 32, 32], "decoder_channels": [32, 32, 32, 32],
        "encoder_layers": 1, "decoder_layers": 1, "quantizer": QuantizerConfig(codebook_size=64, codebook_dim=4),
        "stem_channels": 32,
    }  # fmt: skip
    return GuideConfig(**{**fields, **changes})


def build(config: GuideConfig) -> GuideTokenizer:
    """In evaluation mode, jittered."""
    return jitter(GuideTokenizer(config)).eval()


def images(batch: int = 2, height: int = 32, width: int = 48) -> Tensor:
    """Smooth noise in [-1, 1]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(batch, 3, 8, 12, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
