"""Small networks of random weights in the published layouts of the preference scores."""

from pathlib import Path

import open_clip
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

VISION_HEAD, TEXT_HEAD = 80, 64
VOCABULARY = 49408


def small_open_clip() -> open_clip.CLIP:
    """ViT-H-14's kind in small: GELU, heads of 80 and 64."""
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 28, "layers": 2, "width": VISION_HEAD, "head_width": VISION_HEAD, "patch_size": 14},
        text_cfg={"context_length": 77, "vocab_size": VOCABULARY, "width": TEXT_HEAD, "heads": 1, "layers": 2},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases of zero and scales of one would hide a mix-up
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_hps(path: Path, model: open_clip.CLIP) -> Path:
    """As HPS_v2_compressed.pt is wrapped."""
    torch.save({"epoch": 1, "name": "small", "state_dict": model.state_dict()}, path)
    return path


def save_clip(folder: Path) -> Path:
    """A CLIPModel in transformers' form with CLIP's vocabulary."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
    vision = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return folder


def small_blip() -> tuple[torch.nn.Module, BertModel, torch.nn.Sequential]:
    """ImageReward's parts as other libraries write them: timm's ViT, BERT with cross-attention, the head."""
    import timm

    vision = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=1, num_classes=0, global_pool="", fc_norm=False
    )
    config = BertConfig(
        vocab_size=30524, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        is_decoder=True, add_cross_attention=True, encoder_width=64, hidden_dropout_prob=0.0,
    )  # fmt: skip
    text = BertModel(config, add_pooling_layer=False)
    for layer in text.encoder.layer:
        layer.crossattention.self.key = torch.nn.Linear(64, 128)
        layer.crossattention.self.value = torch.nn.Linear(64, 128)
    linear = torch.nn.Linear
    drop = torch.nn.Dropout
    head = torch.nn.Sequential(
        linear(128, 1024), drop(0.2), linear(1024, 128), drop(0.2), linear(128, 64), drop(0.1), linear(64, 16), linear(16, 1)
    )  # fmt: skip
    with torch.no_grad():
        text.embeddings.token_type_embeddings.weight.zero_()  # BLIP's text has none
        for module in (vision, text):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return vision.eval(), text.eval(), head.eval()


def image_reward_state(vision: torch.nn.Module, text: BertModel, head: torch.nn.Sequential) -> dict[str, torch.Tensor]:
    """The flat state dict of ImageReward.pt, the parts that scoring does not read included."""
    state = {f"blip.visual_encoder.{key}": value for key, value in vision.state_dict().items()}
    state |= {f"blip.text_encoder.{key}": value for key, value in text.state_dict().items() if "token_type" not in key}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    for name, width in (("vision_proj", 64), ("text_proj", 128)):
        state |= {f"blip.{name}.weight": torch.zeros(256, width), f"blip.{name}.bias": torch.zeros(256)}
    return state | {f"mlp.layers.{key}": value for key, value in head.state_dict().items()}
