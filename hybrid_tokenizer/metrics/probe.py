"""`probe_score`: a text-image score that needs no download. A small network maps pooled features of a packaged network
to a sentence encoder's embedding of the caption. It is not a preference model, and its values cannot be compared with
those of other scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn

from hybrid_tokenizer.checkpoints.files import load_strict, load_tensors, read_json
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import check_range, from_uint8, full_resolution_chunk, in_chunks, resize_bicubic, to_uint8
from hybrid_tokenizer.perceptual import EfficientNetDistance

PROBE_WEIGHTS, PROBE_FACTS = "probe.safetensors", "probe.json"
NETWORK, SIDE = "lite1", 224
"""Not lite0, whose distance the embedded preset's search minimises: the score would then favour searched tokens."""
FEATURES = f"efficientnet-{NETWORK}"
TEXT_WIDTH = 384


@runtime_checkable
class SentenceEncoder(Protocol):
    """Maps captions to unit vectors."""

    def sentence_features(self, captions: Sequence[str]) -> Float[Tensor, "b d"]: ...


class Probe(nn.Module):
    """Maps standardised features to a unit vector near the caption's."""

    def __init__(self, num_features: int, hidden_width: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(num_features, hidden_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_width, TEXT_WIDTH),
        )

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Embeddings of unit length."""
        return F.normalize(self.layers((features - self.mean) / self.deviation), dim=-1)


class ProbeScore(nn.Module):
    """Cosine of the probe's embedding and the caption's, in [-1, 1]."""

    name = "probe_score"

    def __init__(self, probe: Probe, text: SentenceEncoder):
        super().__init__()
        self.probe, self.text = probe, text
        self.network = EfficientNetDistance(NETWORK)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"], captions: Sequence[str]) -> Float64[Tensor, "b"]:
        """One value per image. Images are rounded to 8 bits first."""
        return (self.picture_vectors(images) * self.text.sentence_features(list(captions))).sum(-1).double()

    @torch.no_grad()
    def picture_vectors(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The probe's embeddings, of unit length. Images are rounded to 8 bits first."""
        check_range(images)
        return self.probe(pooled_features(self.network, from_uint8(to_uint8(images))))


@torch.no_grad()
def pooled_features(network: EfficientNetDistance, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
    """Mean and standard deviation over positions, per channel of the five stages, for the picture at 224 x 224."""

    def pool(chunk: Float[Tensor, "c 3 s s"]) -> Float[Tensor, "c f"]:
        stages = network.features(chunk)
        return torch.cat([part for stage in stages for part in (stage.mean((2, 3)), stage.std((2, 3)))], dim=1)

    return in_chunks(pool, resize_bicubic(images, (SIDE, SIDE)), full_resolution_chunk(images.device))


def load_probe(folder: Path, text: SentenceEncoder) -> ProbeScore:
    """Load what tools/train_probe.py wrote. `text` must be the encoder that the probe was trained with."""
    facts = read_json(folder / PROBE_FACTS)
    try:
        probe = Probe(facts["num_features"], facts["hidden_width"])
    except (KeyError, TypeError):
        raise HybridTokenizerError(
            f"{folder / PROBE_FACTS} is not of a probe; give a folder that tools/train_probe.py wrote"
        ) from None
    if facts.get("features") != FEATURES:
        raise HybridTokenizerError(
            f"{folder / PROBE_FACTS} is of a probe that reads {facts.get('features')!r}, expected {FEATURES!r}; train it "
            "anew with tools/train_probe.py"
        )
    weights = {key: value.float() for key, value in load_tensors(folder / PROBE_WEIGHTS).items()}
    load_strict(probe, weights, str(folder / PROBE_WEIGHTS))
    return ProbeScore(probe, text)
