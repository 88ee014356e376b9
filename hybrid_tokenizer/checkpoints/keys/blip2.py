"""BLIP-2 checkpoints to Branch II's names: LAVIS's layout (with `eva_vit_g.pth`) and transformers' own.

Keys of the stage-1 heads come out below `heads.`; the rest belongs to the tokenizer.
"""

import torch
from torch import Tensor

from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

VISION_LAYERS = 39  # of EVA-CLIP's 40 blocks: BLIP-2 and SEED read the output of the one before the last


def is_eva(state: dict[str, Tensor]) -> bool:
    """Whether this is a bare EVA-CLIP tower (`eva_vit_g.pth` has no prefix)."""
    return "cls_token" in state and "patch_embed.proj.weight" in state


def join_files(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The files of one LAVIS-like model as one state dict: a bare EVA tower is put below `visual_encoder.`, towers first,
    then in the given order, where later files win."""
    joined = {f"visual_encoder.{key}": value for state in states if is_eva(state) for key, value in state.items()}
    for state in states:
        if not is_eva(state):
            joined |= state
    return joined


def merge_qkv_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EVA's `q_bias` and `v_bias` as one `qkv.bias`, with the zero key bias that EVA leaves out."""
    merged = {key: value for key, value in state.items() if not key.endswith((".q_bias", ".v_bias"))}
    for key, query_bias in state.items():
        if key.endswith(".q_bias"):
            value_bias = state.get(key.removesuffix(".q_bias") + ".v_bias")
            if value_bias is None:
                raise HybridTokenizerError(
                    f"{key} has no v_bias beside it; the checkpoint is incomplete: download it again"
                )
            bias = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
            merged[key.removesuffix(".q_bias") + ".qkv.bias"] = bias
    return merged


def block_table(source: str, target: str, depth: int) -> Table:
    """timm-named pre-norm blocks to BLIP-2's encoder layers."""
    names = {
        "norm1.": "layer_norm1.",
        "norm2.": "layer_norm2.",
        "attn.qkv.": "self_attn.qkv.",
        "attn.proj.": "self_attn.projection.",
        "mlp.": "mlp.",
    }
    return {f"{source}{i}.{old}": f"{target}{i}.{new}" for i in range(depth) for old, new in names.items()}


def vision_table(state: dict[str, Tensor]) -> Table:
    """`visual_encoder.*` and `ln_vision.*` of LAVIS."""
    body, depth = "vision.body.", count_layers(state, "visual_encoder.blocks.")
    return {
        "visual_encoder.cls_token": body + "embeddings.class_embedding",
        "visual_encoder.pos_embed": body + "embeddings.position_embedding",
        "visual_encoder.patch_embed.proj.": body + "embeddings.patch_embedding.",
        **block_table("visual_encoder.blocks.", body + "encoder.layers.", min(depth, VISION_LAYERS)),
        **{f"visual_encoder.blocks.{i}.": None for i in range(VISION_LAYERS, depth)},
        "visual_encoder.norm.": None,  # the full tower's end, behind the dropped block
        "visual_encoder.head.": None,
        "ln_vision.": body + "post_layernorm.",
    }


def qformer_table(state: dict[str, Tensor], source: str, target: str, text: str | None) -> Table:
    """LAVIS's BERT (`source` ends in `.bert.`) to a Q-Former of ours; its text half goes below `text`, or is dropped."""
    table: Table = {
        source + "embeddings.position_ids": None,  # a buffer: 0, 1, 2, ...
        source + "embeddings.LayerNorm.": target + "layernorm.",
        source + "embeddings.word_embeddings.": text and text + "word_embeds.",
        source + "embeddings.position_embeddings.": text and text + "position_embeds.",
    }
    for i in range(count_layers(state, source + "encoder.layer.")):
        old, new = f"{source}encoder.layer.{i}.", f"{target}encoder.layer.{i}."
        for attention in ("attention.", "crossattention."):
            table[old + attention + "self."] = new + attention + "attention."
            table[old + attention + "output."] = new + attention + "output."
        for part in ("intermediate_query.", "output_query."):
            table[old + part] = new + part
        for part in ("intermediate.", "output."):
            table[old + part] = text and f"{text}feed_forwards.{i}.{part}"
    return table


def lavis_table(state: dict[str, Tensor]) -> Table:
    """BLIP-2 stage 1 of LAVIS: encoder and stage-1 heads. The matching head and the captioning head are dropped."""
    return {
        **vision_table(state),
        "query_tokens": "causal_qformer.query_embeds",
        **qformer_table(state, "Qformer.bert.", "causal_qformer.body.", "heads.text."),
        "Qformer.cls.": None,
        "itm_head.": None,
        "temp": "heads.temperature",
        "vision_proj.": "heads.vision_projection.",
        "text_proj.": "heads.text_projection.",
    }


def convert_lavis(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A joined LAVIS state dict (see `join_files`) to `vision.*`, `causal_qformer.*` and `heads.*`."""
    state = merge_qkv_bias(state)
    return rename_keys(state, lavis_table(state), "BLIP-2 checkpoint in LAVIS's layout")


def transformers_table(state: dict[str, Tensor]) -> Table:
    """Blip2ForImageTextRetrieval; of the models with a language model the encoder only."""
    table: Table = {
        "vision_model.": "vision.body.",
        "query_tokens": "causal_qformer.query_embeds",
        "qformer.": "causal_qformer.body.",
        "embeddings.word_embeddings.": "heads.text.word_embeds.",
        "embeddings.position_embeddings.": "heads.text.position_embeds.",
        "embeddings.position_ids": None,
        "vision_projection.": "heads.vision_projection.",
        "text_projection.": "heads.text_projection.",
        "itm_head.": None,
        "language_model.": None,
        "language_projection.": None,
    }
    for i in range(count_layers(state, "qformer.encoder.layer.")):
        for part in ("intermediate.", "output."):
            table[f"qformer.encoder.layer.{i}.{part}"] = f"heads.text.feed_forwards.{i}.{part}"
    return table


def convert_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A BLIP-2 state dict of transformers to `vision.*`, `causal_qformer.*` and `heads.*`."""
    return rename_keys(state, transformers_table(state), "BLIP-2 checkpoint in transformers' layout")
