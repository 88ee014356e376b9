"""VAR's multi-scale VQVAE to the names of `baselines.var_vae.VarVae`."""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.keys.taming import backbone_table, body_sizes, squeeze_attention
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

SHARED = "quantize.quant_resi.qresi."
PARTLY_SHARED = "quantize.quant_resi.qresi_ls."
OWN = "quantize.quant_resi."
DROPPED: Table = {"quantize.ema_vocab_hit_SV": None}
"""How often each scale used each code in training."""


def var_to_backbone(state: dict[str, Tensor], source: str = "VAR VQVAE") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Converted weights and sizes: `GuideConfig` fields, and `num_residuals`, the convolutions that scales share."""
    if "quantize.embedding.weight" not in state:
        raise HybridTokenizerError(f"{source} has no quantize.embedding.weight; give VAR's vae_ch160v4096z32.pth")
    split = split_attention(state)
    # one convolution for all scales, one for a few, or one for each: stored under another name each time
    stored = SHARED if f"{SHARED}weight" in state else PARTLY_SHARED if count_layers(state, PARTLY_SHARED) else OWN
    num_residuals = 1 if stored == SHARED else count_layers(state, stored)
    table: Table = {
        **backbone_table(split),
        "quantize.embedding.": "quantizer.embedding.",
        stored: "residuals.0." if stored == SHARED else "residuals.",
        **DROPPED,
    }
    converted = {key: squeeze_attention(key, value) for key, value in rename_keys(split, table, source).items()}
    codebook_size, codebook_dim = state["quantize.embedding.weight"].shape
    quantizer = {"kind": "vq", "codebook_size": codebook_size, "codebook_dim": codebook_dim}
    return converted, {**body_sizes(split), "quantizer": quantizer, "num_residuals": num_residuals}


def split_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fused `qkv` of each attention as `q`, `k`, `v`, in that order."""
    split = {}
    for key, value in state.items():
        prefix, found, name = key.rpartition("qkv.")
        if not found:
            split[key] = value
            continue
        if value.shape[0] % 3:
            raise HybridTokenizerError(f"{key} has {value.shape[0]} rows, which queries, keys and values cannot share")
        split |= {f"{prefix}{part}.{name}": rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
    return split
