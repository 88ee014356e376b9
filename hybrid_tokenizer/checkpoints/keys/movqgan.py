"""MoVQGAN checkpoints, and diffusers' `movq` folders (Kandinsky), to Branch I's names."""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.keys.taming import DROPPED as TAMING_DROPPED
from hybrid_tokenizer.checkpoints.keys.taming import backbone_sizes, backbone_to_guide, squeeze_attention
from hybrid_tokenizer.checkpoints.rename import Table, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

DROPPED: Table = {
    **TAMING_DROPPED,
    **{f"ema_{part}.": None for part in ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")},
}
"""Losses, and averaged weights of each part, which the reference ignores at inference."""


def movqgan_to_guide(
    state: dict[str, Tensor], source: str = "MoVQGAN checkpoint"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under Branch I's names, and the `GuideConfig` fields that they fit."""
    return backbone_to_guide(state, DROPPED, source), backbone_sizes(state)


def diffusers_vq_to_guide(
    state: dict[str, Tensor], config: dict[str, Any], source: str = "diffusers VQModel"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same of a diffusers `VQModel`: its weights and its `config.json`."""
    if not config.get("mid_block_add_attention", True):
        raise HybridTokenizerError(f"{source} has no attention in its middle block, which Branch I always has")
    table: Table = {part: part for part in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")}
    renamed = rename_keys(state, {**table, "quantize.embedding.": "quantizer.embedding."}, source)
    channels = list(config["block_out_channels"])
    sizes = {
        "encoder_channels": channels,
        "decoder_channels": list(channels),
        "encoder_layers": config.get("layers_per_block", 1),
        "decoder_layers": config.get("layers_per_block", 1),
        "encoder_attention": [i for i, kind in enumerate(config["down_block_types"]) if kind.startswith("Attn")],
        "decoder_attention": [
            i for i, kind in enumerate(reversed(config["up_block_types"])) if kind.startswith("Attn")
        ],
        "z_channels": config["latent_channels"],
        "norm_type": config.get("norm_type", "group"),
        "norm_num_groups": config.get("norm_num_groups", 32),
        "quantizer": {
            "kind": "vq",
            "codebook_size": config["num_vq_embeddings"],
            "codebook_dim": config.get("vq_embed_dim") or config["latent_channels"],
        },
    }
    return {key: squeeze_attention(key, value) for key, value in renamed.items()}, sizes
