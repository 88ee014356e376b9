"""LlamaGen's VQ to the names of `baselines.vqgan.Backbone`."""

import re
from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.keys.taming import backbone_table, body_sizes, squeeze_attention
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

DROPPED: Table = {"quantize.codebook_used": None}
MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}


def llamagen_to_backbone(
    state: dict[str, Tensor], source: str = "LlamaGen VQ"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Converted weights, and the `GuideConfig` fields that they fit."""
    if "quantize.embedding.weight" not in state:
        raise HybridTokenizerError(
            f"{source} has no quantize.embedding.weight; give LlamaGen's vq_ds16_c2i.pt or alike"
        )
    depth = count_layers(state, "decoder.conv_blocks.")
    named = {taming_name(key, depth): value for key, value in state.items()}
    table: Table = {**backbone_table(named), "quantize.embedding.": "quantizer.embedding.", **DROPPED}
    converted = {key: squeeze_attention(key, value) for key, value in rename_keys(named, table, source).items()}
    codebook_size, codebook_dim = state["quantize.embedding.weight"].shape
    quantizer = {"kind": "cosine", "codebook_size": codebook_size, "codebook_dim": codebook_dim}
    return converted, {**body_sizes(named), "quantizer": quantizer}


def taming_name(key: str, decoder_depth: int) -> str:
    """taming's name of a LlamaGen key; the decoder's levels are stored from the lowest resolution up."""
    key = re.sub(r"^(\w+)\.mid\.([012])\.", lambda m: f"{m[1]}.mid.{MIDDLE[m[2]]}.", key)
    key = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", key)
    key = re.sub(r"^decoder\.conv_blocks\.(\d+)\.", lambda m: f"decoder.up.{decoder_depth - 1 - int(m[1])}.", key)
    return re.sub(r"^(\w+\.(?:down|up)\.\d+)\.res\.", r"\1.block.", key)
