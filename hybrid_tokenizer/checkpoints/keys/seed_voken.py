"""Open-MAGVIT2 and IBQ (both of SEED-Voken) to this package's names.

Averaged weights replace the raw ones where a file has them, because the reference evaluates with them.
"""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.averages import prefer_averages
from hybrid_tokenizer.checkpoints.keys.taming import backbone_table, body_sizes, squeeze_attention
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

DROPPED: Table = {"loss.": None}


def ibq_to_backbone(state: dict[str, Tensor], source: str = "IBQ") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under `baselines.vqgan.Backbone`'s names, and the `GuideConfig` fields that they fit."""
    state = prefer_averages(state, source)
    if "quantize.embedding.weight" not in state:
        raise HybridTokenizerError(
            f"{source} has no quantize.embedding.weight; give IBQ's imagenet256_16384.ckpt or alike"
        )
    table: Table = {**backbone_table(state), "quantize.embedding.": "quantizer.embedding.", **DROPPED}
    converted = {key: squeeze_attention(key, value) for key, value in rename_keys(state, table, source).items()}
    codebook_size, codebook_dim = state["quantize.embedding.weight"].shape
    quantizer = {"kind": "vq", "codebook_size": codebook_size, "codebook_dim": codebook_dim}
    return converted, {**body_sizes(state), "quantizer": quantizer}


def magvit2_to_model(
    state: dict[str, Tensor], source: str = "Open-MAGVIT2"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under `baselines.magvit2.Magvit2`'s names, and the fields of `Magvit2Config` that they fit."""
    state = prefer_averages(state, source)
    depth = count_layers(state, "encoder.down.")
    needed = [
        "encoder.conv_out.weight",
        *(f"encoder.down.{level}.block.0.conv1.weight" for level in range(max(depth, 1))),
    ]
    absent = [key for key in needed if key not in state]
    if absent:
        raise HybridTokenizerError(
            f"{source} has no {', '.join(absent)}; give Open-MAGVIT2's imagenet_256_L.ckpt or alike"
        )
    table: Table = dict(DROPPED)
    for half, levels in (("encoder", "down"), ("decoder", "up")):
        for part in ("conv_in.", "norm_out.", "conv_out."):
            table[f"{half}.{part}"] = f"{half}.{part}"
        for layer in range(count_layers(state, f"{half}.mid_block.")):
            table |= block_table(f"{half}.mid_block.{layer}.", f"{half}.middle.{layer}.")
        for level in range(count_layers(state, f"{half}.{levels}.")):
            old, new = f"{half}.{levels}.{level}.", f"{half}.levels.{level}."
            for layer in range(count_layers(state, old + "block.")):
                table |= block_table(f"{old}block.{layer}.", f"{new}blocks.{layer}.")
            table[old + "downsample."] = new + "resample."
            table[old + "upsample.conv1."] = new + "resample.conv."
    for level in range(count_layers(state, "decoder.adaptive.")):
        for part in ("gamma.", "beta."):
            table[f"decoder.adaptive.{level}.{part}"] = f"decoder.levels.{level}.style.{part}"
    sizes = {
        "channels": [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(depth)],
        "layers": count_layers(state, "encoder.down.0.block."),
        "num_bits": state["encoder.conv_out.weight"].shape[0],
    }
    return rename_keys(state, table, source), sizes


def block_table(source: str, target: str) -> Table:
    """One residual block."""
    names = {part: part for part in ("norm1.", "conv1.", "norm2.", "conv2.")} | {"nin_shortcut.": "shortcut."}
    return {source + old: target + new for old, new in names.items()}
