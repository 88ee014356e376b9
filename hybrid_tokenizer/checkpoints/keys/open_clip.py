"""open_clip's CLIP (text tower at the top level, as ViT-H-14 and HPSv2 are stored) to the names of transformers' CLIPModel."""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

TOWERS = {"visual.": "vision_model.", "": "text_model."}
BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.q_proj.": "self_attn.q_proj.",
    "attn.k_proj.": "self_attn.k_proj.",
    "attn.v_proj.": "self_attn.v_proj.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
OUTSIDE: Table = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # transformers' own spelling
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
    "attn_mask": None,  # a constant that old versions stored
}
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")  # open_clip multiplies from the right


def clip_from_open_clip(state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Every key under transformers' name; fused query, key and value apart. `source` names the file in errors."""
    table = dict(OUTSIDE)
    for theirs, ours in TOWERS.items():
        for layer in range(count_layers(state_dict, f"{theirs}transformer.resblocks.")):
            block = f"{theirs}transformer.resblocks.{layer}."
            table |= {block + key: f"{ours}encoder.layers.{layer}.{name}" for key, name in BLOCK.items()}
    renamed = rename_keys(_split_attention(state_dict), table, source)
    return {key: value.T.contiguous() if key in TRANSPOSED else value for key, value in renamed.items()}


def _split_attention(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for key, value in state_dict.items():
        block, found, kind = key.rpartition("attn.in_proj_")
        if found:
            parts = zip("qkv", value.chunk(3), strict=True)
            split |= {f"{block}attn.{letter}_proj.{kind}": part for letter, part in parts}
        else:
            split[key] = value
    return split


def open_clip_sizes(
    state_dict: dict[str, Tensor], source: str, vision_head_width: int, text_head_width: int
) -> dict[str, Any]:
    """Arguments of transformers' CLIPConfig, read off the shapes; only the width of a head is not stored."""
    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "token_embedding.weight")
    missing = [key for key in (*needed, "positional_embedding", "logit_scale") if key not in state_dict]
    if missing:
        raise HybridTokenizerError(f"{source} lacks {', '.join(missing)}; give a CLIP of open_clip such as HPSv2's")
    width, _, patch, _ = state_dict["visual.conv1.weight"].shape
    grid = round((len(state_dict["visual.positional_embedding"]) - 1) ** 0.5)
    vocab_size, text_width = state_dict["token_embedding.weight"].shape
    for head, of in ((vision_head_width, width), (text_head_width, text_width)):
        if of % head:
            raise HybridTokenizerError(f"{source}: a width of {of} is no multiple of {head}, the width of a head")
    text = {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": count_layers(state_dict, "transformer.resblocks."),
        "num_attention_heads": text_width // text_head_width,
        "max_position_embeddings": len(state_dict["positional_embedding"]),
        "vocab_size": vocab_size,
        "hidden_act": "gelu",
        "eos_token_id": 2,  # transformers then pools at the largest id, as open_clip does
        "bos_token_id": 0,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": count_layers(state_dict, "visual.transformer.resblocks."),
        "num_attention_heads": width // vision_head_width,
        "image_size": grid * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
    }
    return {"text_config": text, "vision_config": vision, "projection_dim": state_dict["visual.proj"].shape[1]}
