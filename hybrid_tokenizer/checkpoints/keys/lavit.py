"""LaVIT's visual tokenizer and its two token decoders to the names of `baselines.lavit`."""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.keys.blip2 import block_table, is_eva, merge_qkv_bias
from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError


def join_files(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`eva_vitg_psz14.bin` (a bare tower) and `tokenizer_encoder.bin` as one state dict; later files win."""
    joined = {f"encoder.{key}": value for state in states if is_eva(state) for key, value in state.items()}
    for state in states:
        if not is_eva(state):
            joined |= state
    return joined


def encoder_to_model(
    state: dict[str, Tensor], source: str = "LaVIT tokenizer"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tokenizer, image to codes, and the fields of `LavitConfig` that its weights tell."""
    needed = ("encoder.patch_embed.proj.weight", "encoder.pos_embed", "encoder.blocks.0.mlp.fc1.weight",
              "causal_encoder.blocks.0.mlp.fc1.weight", "quantize.embedding.weight")  # fmt: skip
    absent = [key for key in needed if key not in state]
    if absent:
        raise HybridTokenizerError(
            f"{source} has no {', '.join(absent)}; give LaVIT's eva_vitg_psz14.bin and tokenizer_encoder.bin"
        )
    depth = count_layers(state, "encoder.blocks.")
    merger_depth = count_layers(state, "causal_encoder.blocks.")
    body = "vision.body."
    table: Table = {
        "encoder.cls_token": body + "embeddings.class_embedding",
        "encoder.pos_embed": body + "embeddings.position_embedding",
        "encoder.patch_embed.proj.": body + "embeddings.patch_embedding.",
        **block_table("encoder.blocks.", body + "encoder.layers.", depth),
        "encoder.norm.": None,  # the tower's classifier
        "encoder.head.": None,
        "causal_encoder.ln_vision.": body + "post_layernorm.",
        "causal_encoder.norm.": "merger_norm.",
        "token_predictor.in_conv.": "selector.local.",
        "token_predictor.out_conv.": "selector.score.",
        "quantize.embedding.": "quantizer.embedding.",
        "encode_task_layer.": "encode_task.",
        "vit_proj.": None,  # into the language model
    }
    for layer in range(merger_depth):
        old, new = f"causal_encoder.blocks.{layer}.", f"merger.{layer}."
        table |= {
            old + "norm0.": new + "norm0.",
            old + "norm1.": new + "norm1.",
            old + "norm2.": new + "norm2.",
            old + "token_causal_attn.": new + "self_attention.",
            old + "token_cross_attn.": new + "cross_attention.",
            old + "mlp.": new + "mlp.",
        }
    codebook_size, codebook_dim = state["quantize.embedding.weight"].shape
    width, _, patch, _ = state["encoder.patch_embed.proj.weight"].shape
    sizes = {
        "patch_size": patch,
        "image_size": patch * round((state["encoder.pos_embed"].shape[1] - 1) ** 0.5),
        "width": width,
        "vision_layers": depth,
        "vision_mlp_width": len(state["encoder.blocks.0.mlp.fc1.weight"]),
        "merger_layers": merger_depth,
        "merger_mlp_width": len(state["causal_encoder.blocks.0.mlp.fc1.weight"]),
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    return rename_keys(split_attention(merge_qkv_bias(state)), table, source), sizes


def decoder_to_model(
    state: dict[str, Tensor], source: str = "LaVIT token decoder"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A token decoder, codes to the U-Net's condition; its projections tell whether it is the high-resolution one."""
    needed = ("query_embed", "in_proj.weight", "blocks.0.mlp.fc1.weight", "decode_task_layer.2.weight")
    absent = [key for key in needed if key not in state]
    if absent:
        raise HybridTokenizerError(
            f"{source} has no {', '.join(absent)}; give tokenizer_decoder.bin or highres_tokenizer_decoder.bin"
        )
    projections = [name for name in ("unet_proj", "unet_proj_1", "unet_proj_2") if f"{name}.weight" in state]
    table: Table = {
        "pos_embed": "position_embeds",
        "query_embed": "query_embeds",
        "in_proj.": "embed.",
        "norm.": "norm.",
        "decode_task_layer.": "decode_task.",
        **{f"{name}.": f"projections.{i}." for i, name in enumerate(projections)},
        "unet_attnpool.positional_embedding": "pool.position_embeds",
        **{f"unet_attnpool.{part}_proj.": f"pool.{part}_proj." for part in "qkvc"},
    }
    for layer in range(count_layers(state, "blocks.")):
        old, new = f"blocks.{layer}.", f"blocks.{layer}."
        table |= {
            old + "norm0.": new + "norm0.",
            old + "norm1.": new + "norm1.",
            old + "norm2.": new + "norm2.",
            old + "self_attn.": new + "self_attention.",
            old + "cross_attn.": new + "cross_attention.",
            old + "mlp.": new + "mlp.",
        }
    _, num_queries, width = state["query_embed"].shape
    sizes = {
        "num_queries": num_queries,
        "width": width,
        "codebook_dim": state["in_proj.weight"].shape[1],
        "layers": count_layers(state, "blocks."),
        "mlp_width": len(state["blocks.0.mlp.fc1.weight"]),
        "out_width": len(state["decode_task_layer.2.weight"]),
        "condition_widths": [len(state[f"{name}.weight"]) for name in projections],
        "pooled_width": len(state["unet_attnpool.c_proj.weight"]) if "unet_attnpool.c_proj.weight" in state else None,
    }
    return rename_keys(split_attention(state), table, source), sizes


def split_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fused `qkv` of the merger's and the decoders' self-attention as `query`, `key`, `value`, like their cross-attention."""
    split = {}
    for key, value in state.items():
        prefix, found, name = key.rpartition("_attn.qkv.")
        if not found:
            split[key] = value
            continue
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        split |= {f"{prefix}_attn.{part}.{name}": rows for part, rows in parts}
    return split
