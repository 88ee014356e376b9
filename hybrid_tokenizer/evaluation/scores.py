"""Scores of images against captions: built from their weights, or listed with the reason why they are unavailable."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.checkpoints.files import state_hash
from hybrid_tokenizer.evaluation.config import SCORES
from hybrid_tokenizer.metrics import preference
from hybrid_tokenizer.metrics.probe import PROBE_WEIGHTS, load_probe
from hybrid_tokenizer.text import MiniLMText, minilm_folder

HEADINGS = {  # of the columns, and the format of their values
    "pickscore": ("PickScore ↑", ".2f"),
    "image_reward": ("ImageReward ↑", ".3f"),
    "hps_v2": ("HPSv2 ↑", ".4f"),
    "hps_v21": ("HPSv2.1 ↑", ".4f"),
    "clip_score": ("CLIPScore ↑", ".4f"),
    "probe_score": ("probe score ↑", ".4f"),
}
SOURCES = {  # what `hub` stands for; CLIP folders are found by their id alone
    "pickscore": hub.Source("yuvalkirstain/PickScore_v1", "model.safetensors"),
    "image_reward": hub.Source("THUDM/ImageReward", "ImageReward.pt"),
    "hps_v2": hub.Source("xswu/HPSv2", "HPS_v2_compressed.pt"),
    "hps_v21": hub.Source("xswu/HPSv2", "HPS_v2.1_compressed.pt"),
    "clip_score": hub.Source("openai/clip-vit-base-patch32", "model.safetensors"),
}
PROBE_FOLDER = Path(__file__).resolve().parents[1] / "presets" / "probe"


@runtime_checkable
class TextImageScore(Protocol):
    """One value per image and its caption; higher is better."""

    name: str

    def __call__(self, images: Float[Tensor, "b 3 h w"], captions: Sequence[str]) -> Float64[Tensor, "b"]: ...


class Scores(NamedTuple):
    """The available scores, sha256 of each one's weights, and why the others are unavailable."""

    scores: list[TextImageScore]
    hashes: dict[str, str]
    unavailable: dict[str, str]


def build_scores(
    weights: Mapping[str, str], clip_tokenizer: str | None, device: torch.device | str, dtype: torch.dtype
) -> Scores:
    """The scores that `weights` names (name -> file, folder, hub id or `hub`), and the probe if the package has its weights."""
    weights = dict(weights)
    if "probe_score" not in weights and (PROBE_FOLDER / PROBE_WEIGHTS).is_file():
        weights["probe_score"] = str(PROBE_FOLDER)
    built = Scores([], {}, {})
    for name in SCORES:
        if name not in weights:
            built.unavailable[name] = f"no weights were given: +score_weights.{name}=FILE_OR_FOLDER{published_as(name)}"
            continue
        score = build_score(name, weights[name], clip_tokenizer)
        built.hashes[name] = state_hash(score)
        # the probe is small, and its text encoder always runs in fp32
        built.scores.append(score.to(device) if name == "probe_score" else score.to(device=device, dtype=dtype))
    return built


def published_as(name: str) -> str:
    """Where to find the weights of a score, as the end of a sentence."""
    return f", {SOURCES[name].file} of {SOURCES[name].repository}" if name in SOURCES else ""


def build_score(name: str, source: str, clip_tokenizer: str | None = None) -> torch.nn.Module:
    """One score on the CPU in fp32. The module is a `TextImageScore`."""
    if name == "probe_score":
        return load_probe(Path(source), MiniLMText())
    if name == "image_reward":
        return preference.load_image_reward(find_file(name, source), preference.BertIds(minilm_folder()))
    tokens = preference.FolderTokens(clip_tokenizer) if clip_tokenizer else preference.OpenClipTokens()
    if name in ("hps_v2", "hps_v21"):
        return preference.HPSv2(name, preference.load_open_clip(find_file(name, source)), tokens)
    kind = preference.PickScore if name == "pickscore" else preference.CLIPScore
    return kind(name, preference.load_clip(SOURCES[name].repository if source == hub.HUB else source), tokens)


def find_file(name: str, source: str) -> Path:
    """The weights of a score that is one file: a file, its folder, a hub id, or `hub` for where it was published."""
    return hub.find_file(f"score_weights.{name}", source, [SOURCES[name]])
