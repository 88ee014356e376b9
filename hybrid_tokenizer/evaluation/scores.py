"""The scores that a run can have, from where their weights are; the others with the reason why not."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hybrid_tokenizer.baselines.registry import HUB, Source, fetch
from hybrid_tokenizer.checkpoints.files import state_hash
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import SCORES
from hybrid_tokenizer.metrics import preference
from hybrid_tokenizer.metrics.probe import PROBE_WEIGHTS, load_probe
from hybrid_tokenizer.text import MiniLMText, minilm_folder

SOURCES = {  # where `hub` finds them; CLIP folders are found by their id alone
    "pickscore": Source("yuvalkirstain/PickScore_v1", "model.safetensors"),
    "image_reward": Source("THUDM/ImageReward", "ImageReward.pt"),
    "hps_v2": Source("xswu/HPSv2", "HPS_v2_compressed.pt"),
    "hps_v21": Source("xswu/HPSv2", "HPS_v2.1_compressed.pt"),
    "clip_score": Source("openai/clip-vit-base-patch32", "model.safetensors"),
}
PROBE_FOLDER = Path(__file__).resolve().parents[1] / "presets" / "probe"


@runtime_checkable
class TextImageScore(Protocol):
    """A value an image and its caption; higher is better."""

    name: str

    def __call__(self, images: Float[Tensor, "b 3 h w"], captions: Sequence[str]) -> Float64[Tensor, "b"]: ...


class Scores(NamedTuple):
    """What a run measures, sha256 of each one's weights, and why the others are not there."""

    scores: list[TextImageScore]
    hashes: dict[str, str]
    unavailable: dict[str, str]


def build_scores(
    weights: Mapping[str, str], clip_tokenizer: str | None, device: torch.device | str, dtype: torch.dtype
) -> Scores:
    """The scores of `weights` (name -> file, folder, hub id or `hub`), and the probe wherever its weights are."""
    weights = dict(weights)
    if "probe_score" not in weights and (PROBE_FOLDER / PROBE_WEIGHTS).is_file():
        weights["probe_score"] = str(PROBE_FOLDER)
    built = Scores([], {}, {})
    for name in SCORES:
        if name not in weights:
            built.unavailable[name] = f"no weights were given: +score_weights.{name}=FILE_OR_FOLDER"
            continue
        score = build_score(name, weights[name], clip_tokenizer)
        built.hashes[name] = state_hash(score)
        # the probe is small, and its text encoder always runs in fp32
        built.scores.append(score.to(device) if name == "probe_score" else score.to(device=device, dtype=dtype))
    return built


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
    return kind(name, preference.load_clip(SOURCES[name].repository if source == HUB else source), tokens)


def find_file(name: str, source: str) -> Path:
    """The weights of a score that is one file: itself, in a folder, under a hub id, or for `hub` where it was published."""
    path = Path(source)
    if path.is_dir():
        path = path / SOURCES[name].file
        if not path.is_file():
            raise HybridTokenizerError(f"{source} has no {path.name}; give the file of score_weights.{name} itself")
    if path.is_file():
        return path
    if source != HUB and (source.count("/") != 1 or source.startswith((".", "~", os.sep))):
        raise HybridTokenizerError(
            f"score_weights.{name}={source!r} does not exist; give {SOURCES[name].file}, its folder, a hub id, or {HUB}"
        )
    repository = SOURCES[name].repository if source == HUB else source
    return fetch(name, [Source(repository, SOURCES[name].file)], together=False)
