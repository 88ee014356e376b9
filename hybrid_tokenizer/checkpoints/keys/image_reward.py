"""ImageReward.pt (a BLIP of its authors' repository under `blip.`, and its head under `mlp.`) to transformers' names."""

from typing import Any

from torch import Tensor

from hybrid_tokenizer.checkpoints.rename import Table, count_layers, rename_keys
from hybrid_tokenizer.errors import HybridTokenizerError

HEAD_WIDTH = 64
VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
OUTSIDE: Table = {
    "mlp.layers.": "head.",
    f"{VISION}cls_token": "vision.embeddings.class_embedding",
    f"{VISION}pos_embed": "vision.embeddings.position_embedding",
    f"{VISION}patch_embed.proj.": "vision.embeddings.patch_embedding.",
    f"{VISION}norm.": "vision.post_layernorm.",
    f"{TEXT}embeddings.": "text.embeddings.",
    f"{TEXT}embeddings.position_ids": None,  # 0, 1, 2, ...
    f"{TEXT}encoder.layer.": "text.encoder.layer.",
    "blip.vision_proj.": None,  # of BLIP's contrastive loss, which the reward does not read
    "blip.text_proj.": None,
}
BLOCK = {
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}


def image_reward_keys(state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Every key under the names of `metrics.preference.ImageReward`. `source` names the file in errors."""
    table = dict(OUTSIDE)
    for layer in range(count_layers(state_dict, f"{VISION}blocks.")):
        table |= {
            f"{VISION}blocks.{layer}.{key}": f"vision.encoder.layers.{layer}.{name}" for key, name in BLOCK.items()
        }
    return rename_keys(state_dict, table, source)


def image_reward_sizes(state_dict: dict[str, Tensor], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of BlipVisionConfig and BlipTextConfig, read off the shapes; heads are 64 wide."""
    words, positions = (f"{TEXT}embeddings.{kind}_embeddings.weight" for kind in ("word", "position"))
    inner = f"{TEXT}encoder.layer.0.intermediate.dense.weight"
    patches, places = f"{VISION}patch_embed.proj.weight", f"{VISION}pos_embed"
    missing = [key for key in (words, positions, inner, patches, places) if key not in state_dict]
    if missing:
        raise HybridTokenizerError(f"{source} lacks {', '.join(missing)}; give ImageReward.pt as it was published")
    width, _, patch, _ = state_dict[patches].shape
    vocab_size, text_width = state_dict[words].shape
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": count_layers(state_dict, f"{VISION}blocks."),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": round((state_dict[places].shape[1] - 1) ** 0.5) * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": text_width,
        "encoder_hidden_size": width,
        "intermediate_size": len(state_dict[inner]),
        "num_hidden_layers": count_layers(state_dict, f"{TEXT}encoder.layer."),
        "num_attention_heads": text_width // HEAD_WIDTH,
        "max_position_embeddings": len(state_dict[positions]),
        "vocab_size": vocab_size,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "is_decoder": True,  # what gives each layer its attention to the image; the mask stays bidirectional
    }
    return vision, text
