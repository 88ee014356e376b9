"""Text-image scores whose weights the user provides: PickScore, HPSv2, ImageReward and CLIPScore, on transformers' classes.

Each is a module that takes images in [-1, 1] of any size and one caption per image, and returns one float64 value per
image. Networks may run in bf16. Embeddings are compared in fp32, and ImageReward's head runs in fp32.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
)
from transformers.utils import logging

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.files import load_strict, read_foreign
from hybrid_tokenizer.checkpoints.keys.image_reward import image_reward_keys, image_reward_sizes
from hybrid_tokenizer.checkpoints.keys.open_clip import clip_from_open_clip, open_clip_sizes
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, shorten
from hybrid_tokenizer.images import check_range, from_uint8, normalize_clip, resize_bicubic, to_uint8

CLIP_LENGTH = 77
TOKENIZER_PATTERNS = ("*.json", "*.txt")
CLIP_PATTERNS = ("*.json", "*.safetensors")
IMAGE_REWARD_LENGTH = 35
IMAGE_REWARD_MEAN, IMAGE_REWARD_STD = 0.16717362830052426, 1.0333394966054072
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
CLIPSCORE_WEIGHT, CLIPSCORE_PROMPT = 2.5, "A photo depicts "  # Hessel et al. 2021, section 3

Tokens = Callable[[Sequence[str]], Int[Tensor, "b 77"]]


class OpenClipTokens:
    """Tokenizes captions with CLIP's vocabulary from the package open_clip_torch."""

    def __init__(self) -> None:
        try:
            from open_clip.tokenizer import SimpleTokenizer
        except ImportError:
            raise HybridTokenizerError(
                "CLIP's vocabulary is not there; pip install 'hybrid_tokenizer[preference]', or give clip_tokenizer=FOLDER "
                "in transformers' form"
            ) from None
        self.tokenizer = SimpleTokenizer(context_length=CLIP_LENGTH)

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "b 77"]:
        """Ids truncated to 77 with the end mark kept, padded with zeros."""
        return self.tokenizer(list(captions))


class FolderTokens:
    """Tokenizes captions with CLIP's tokenizer in transformers' form, from a folder or a hub id."""

    def __init__(self, folder: str | Path):
        home = hub.folder(folder, expected="the folder of CLIP's tokenizer", patterns=TOKENIZER_PATTERNS)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(home, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise HybridTokenizerError(
                f"no tokenizer can be read from {folder} ({first_line(error)}); give CLIP's, a folder or a hub id"
            ) from None

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "b 77"]:
        """Ids truncated to 77 with the end mark kept. The embedding is read at the end mark, which does not attend to
        the padding after it."""
        batch = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=CLIP_LENGTH, return_tensors="pt"
        )
        return batch["input_ids"]


class BertIds:
    """Tokenizes captions with bert-base-uncased as in ImageReward's training: truncated and padded to 35."""

    def __init__(self, folder: str | Path):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def __call__(self, captions: Sequence[str]) -> tuple[Int[Tensor, "b 35"], Int[Tensor, "b 35"]]:
        batch = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=IMAGE_REWARD_LENGTH, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"]


def crop_square(images: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 s s"]:
    """Resize the shorter side to `side` and crop the centre, on 8-bit levels, as the authors' pipelines do with stored pictures."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    size = (side * height // shorter, side * width // shorter)
    resized = from_uint8(to_uint8(resize_bicubic(images, size)))
    top, left = (round((extent - side) / 2) for extent in size)
    return resized[..., top : top + side, left : left + side]


def pad_square(images: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b 3 s s"]:
    """Resize the longer side to `side` and pad with black: HPSv2 scores whole pictures."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    size = (round(side * height / longer), round(side * width / longer))
    resized = resize_bicubic(images, size).clamp(-1, 1)
    rows, columns = side - size[0], side - size[1]
    return F.pad(resized, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=-1.0)


class ClipCosine(nn.Module):
    """Cosine of CLIP's image and caption embeddings. Subclasses turn it into a score."""

    prompt = ""
    fit = staticmethod(crop_square)

    def __init__(self, name: str, clip: CLIPModel, tokens: Tokens):
        super().__init__()
        self.name, self.clip, self.tokens = name, clip, tokens
        self.requires_grad_(False).eval()

    def score(self, cosines: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Turn the cosine into the published score."""
        raise NotImplementedError

    def image_embeds(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings of unit length in fp32."""
        pixels = normalize_clip(self.fit(eight_bit(images), self.clip.config.vision_config.image_size))
        features = self.clip.get_image_features(pixel_values=pixels.to(self.clip.dtype)).pooler_output
        return F.normalize(features.float(), dim=-1)

    def text_embeds(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Embeddings of unit length in fp32."""
        ids = self.tokens([self.prompt + caption for caption in captions]).to(self.clip.device)
        return F.normalize(self.clip.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"], captions: Sequence[str]) -> Float64[Tensor, "b"]:
        """One value per image."""
        return self.score((self.image_embeds(images) * self.text_embeds(captions)).sum(-1)).double()


class PickScore(ClipCosine):
    """PickScore (Kirstain et al. 2023): the cosine times the learned scale, about 20. A softmax over pictures gives preferences."""

    def score(self, cosines: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return self.clip.logit_scale.float().exp() * cosines


class HPSv2(ClipCosine):
    """HPSv2 (Wu et al. 2023): the cosine itself, about 0.2 to 0.3."""

    fit = staticmethod(pad_square)

    def score(self, cosines: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return cosines


class CLIPScore(ClipCosine):
    """CLIPScore (Hessel et al. 2021): 2.5 max(cosine, 0) with the prompt "A photo depicts ..."."""

    prompt = CLIPSCORE_PROMPT

    def score(self, cosines: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return CLIPSCORE_WEIGHT * cosines.clamp_min(0)


class ImageReward(nn.Module):
    """ImageReward (Xu et al. 2023): BLIP encodes the caption with cross-attention to the picture, and a linear head
    gives a z-score."""

    name = "image_reward"

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, ids: BertIds):
        super().__init__()
        self.ids = ids
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = reward_head(text.hidden_size)
        self.requires_grad_(False).eval()

    def to(self, *args: Any, **kwargs: Any) -> "ImageReward":
        """Move and cast the networks. The head stays in fp32."""
        super().to(*args, **kwargs)
        self.head.float()
        return self

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"], captions: Sequence[str]) -> Float64[Tensor, "b"]:
        """One value per image."""
        pixels = normalize_clip(crop_square(eight_bit(images), self.vision.config.image_size))
        patches = self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state
        ids, mask = (part.to(patches.device) for part in self.ids(captions))
        states = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches).last_hidden_state
        return standardize(self.head(states[:, 0].float())[:, 0]).double()


def standardize(rewards: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Standardise raw rewards with the mean and standard deviation that the authors publish."""
    return (rewards - IMAGE_REWARD_MEAN) / IMAGE_REWARD_STD


def reward_head(width: int) -> nn.Sequential:
    """ImageReward's head: five linear layers without activations. The indices of its dropout layers are kept, so that
    the published keys match."""
    layers: list[nn.Module] = []
    for out in HEAD_WIDTHS:
        layers.append(nn.Linear(width, out))
        if out in HEAD_WIDTHS[:3]:
            layers.append(nn.Identity())
        width = out
    return nn.Sequential(*layers)


def eight_bit(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images as a file would store them: checked, clamped and rounded to 8 bits, in fp32."""
    check_range(images)
    return from_uint8(to_uint8(images))


def load_clip(folder: str | Path) -> CLIPModel:
    """Load a CLIPModel in transformers' form from a folder or a hub id, in fp32. Raises if a weight is missing or unexpected."""
    home = hub.folder(folder, expected="a CLIP in transformers' form", patterns=CLIP_PATTERNS)
    logging.disable_progress_bar()
    try:
        model, report = CLIPModel.from_pretrained(
            home, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HybridTokenizerError(
            f"{folder} cannot be loaded ({first_line(error)}); give a CLIP in transformers' form, a folder or a hub id"
        ) from None
    for what in ("missing_keys", "unexpected_keys"):
        keys = sorted(key for key in report[what] if not key.endswith("position_ids"))
        if keys:
            raise HybridTokenizerError(
                f"{folder}: {len(keys)} {what.replace('_', ' ')}: {shorten(keys)}; give the CLIP that belongs to this score"
            )
    return model


def load_open_clip(file: Path, vision_head_width: int = 80, text_head_width: int = 64) -> CLIPModel:
    """Load a CLIP that open_clip stored, such as HPS_v2_compressed.pt, as a CLIPModel. The head width is that of ViT-H-14."""
    state = read_foreign(file)
    config = CLIPConfig(**open_clip_sizes(state, str(file), vision_head_width, text_head_width))
    model = CLIPModel(config)
    load_strict(model, clip_from_open_clip(state, str(file)), str(file))
    return model


def load_image_reward(file: Path, ids: BertIds) -> ImageReward:
    """Load ImageReward.pt as published. Only tensors are unpickled."""
    state = read_foreign(file)
    vision, text = image_reward_sizes(state, str(file))
    model = ImageReward(BlipVisionConfig(**vision), BlipTextConfig(**text), ids)
    load_strict(model, image_reward_keys(state, str(file)), str(file))
    return model
