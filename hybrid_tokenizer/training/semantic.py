"""Branch II: stage 1 aligns the last causal embedding with text (eq. 6), stage 2 trains everything after the Q-Former."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import resize_bicubic
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.metrics.perceptual import EfficientNetDistance
from hybrid_tokenizer.quantizers import vq_loss
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.semantic.losses import QuantizeWeights, contrastive_loss, cosine_loss, generation_loss
from hybrid_tokenizer.training.objective import Judged, Objective
from hybrid_tokenizer.training.text import MiniLMText, mean_token_features, text_of
from hybrid_tokenizer.training.weights import ContrastiveWeights

TEACHER_SIZE = 256  # EfficientNet-lite's last stage has stride 32: 8 x 8 positions
TEACHER_WIDTH = 320


class SentenceHeads(nn.Module):
    """Projections of eq. 6 for a frozen sentence encoder, the temperature, and the distillation of a feature network.

    With a vision encoder that starts from random weights, captions of a few thousand photographs teach little about
    images: `teacher` lets its patches also predict the feature network's map.
    """

    def __init__(self, width: int, vision_width: int, text_width: int, weights: ContrastiveWeights):
        super().__init__()
        self.vision_projection = nn.Linear(width, weights.feature_width)
        self.text_projection = nn.Linear(text_width, weights.feature_width)
        self.temperature = nn.Parameter(torch.tensor(weights.temperature))
        self.teacher = nn.Linear(vision_width, TEACHER_WIDTH)


class ContrastiveObjective(Objective):
    """Stage 1 of the embedded preset: vision encoder and causal Q-Former against MiniLM sentences.

    `model` is the whole tokenizer; what stage 2 trains has no gradient here.
    """

    def __init__(self, model: SemanticTokenizer, weights: ContrastiveWeights):
        super().__init__()
        self.model, self.weights = model, weights
        for part in later_parts(model):
            part.requires_grad_(False)
        self.heads = SentenceHeads(model.config.width, model.config.vision_width, MiniLMText.width, weights)
        helpers: dict[str, nn.Module] = {"text": MiniLMText()}
        if weights.distillation:
            helpers["teacher"] = EfficientNetDistance("lite0")
        self.freeze(**helpers)

    def image_features(self, causal_embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b f"]:
        return F.normalize(self.heads.vision_projection(causal_embeds[:, -1]).float(), dim=-1)

    def text_features(self, captions: list[str]) -> Float[Tensor, "b f"]:
        return F.normalize(self.heads.text_projection(self.frozen["text"].sentence_features(captions)).float(), dim=-1)

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        images = batch["images"]
        image_embeds = self.model.image_embeds(images)
        causal_embeds = self.model.causal_qformer(image_embeds)
        contrastive = contrastive_loss(
            self.image_features(causal_embeds),
            self.text_features(text_of(batch)),
            self.heads.temperature.clamp_min(self.weights.temperature_floor),
            label_smoothing=self.weights.label_smoothing,
            literal_eq6=self.weights.literal_eq6,
            reference_gather=self.weights.reference_gather,
        )
        losses = {"contrastive": contrastive, "temperature": self.heads.temperature.detach()}
        total = contrastive
        if self.weights.distillation:
            losses["distillation"] = self.distillation(image_embeds, images)
            total = total + self.weights.distillation * losses["distillation"]
        return {**losses, "total": total}

    def distillation(self, image_embeds: Tensor, images: Tensor) -> Float[Tensor, ""]:
        """1 - cosine between each patch's prediction and the teacher's features there."""
        with torch.no_grad():
            target = self.frozen["teacher"].features(resize_bicubic(images, (TEACHER_SIZE, TEACHER_SIZE)))[-1]
        side = round((image_embeds.shape[1] - 1) ** 0.5)
        patches = rearrange(self.heads.teacher(image_embeds[:, 1:]), "b (h w) d -> b d h w", h=side)
        pooled = F.adaptive_avg_pool2d(patches.float(), target.shape[-2:])
        return (1 - F.cosine_similarity(pooled, target, dim=1)).mean()

    def judge(self, batches: list[dict[str, Any]]) -> Judged:
        """Retrieval over the validation pairs, both directions."""
        image_rows, text_rows = [], []
        for batch in batches:
            image_rows.append(self.image_features(self.model.causal_embeds(batch["images"])))
            text_rows.append(self.text_features(text_of(batch)))
        similarities = torch.cat(image_rows) @ torch.cat(text_rows).T
        figures = {f"image_to_text_recall@{k}": recall_at(similarities, k) for k in (1, 5, 10)}
        figures |= {f"text_to_image_recall@{k}": recall_at(similarities.T, k) for k in (1, 5, 10)}
        return Judged(figures, None)

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.model.save_pretrained(folder)


class QuantizeObjective(Objective):
    """Stage 2: vision encoder and causal Q-Former frozen; codebook, stacks and reverse Q-Former trained."""

    def __init__(self, model: SemanticTokenizer, weights: QuantizeWeights):
        super().__init__()
        if model.cosine is None:
            raise HybridTokenizerError("stage=quantize needs the cosine stack of eq. 7; set semantic.cosine_stack=true")
        self.model, self.weights = model, weights
        for part in (model.vision, model.causal_qformer):
            part.requires_grad_(False)
        self.freeze(text=MiniLMText())

    def train(self, mode: bool = True) -> "QuantizeObjective":
        super().train(mode)
        self.model.vision.eval()  # the reference leaves dropout of its frozen Q-Former on; a frozen target should not move
        self.model.causal_qformer.eval()
        return self

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        with torch.no_grad():
            causal_embeds = self.model.causal_embeds(batch["images"]).float()
        output = self.model.reconstruct(causal_embeds)
        target = self.frozen["text"].token_features(text_of(batch))
        losses = {
            "vq": vq_loss(output.quantized, self.model.config.quantizer),
            "cosine": cosine_loss(output.cosine_embeds.float(), causal_embeds),
            "generation": generation_loss(output.generation_embeds.float(), target),
        }
        total = sum(getattr(self.weights, name) * value for name, value in losses.items())
        return {**losses, "total": total}

    def judge(self, batches: list[dict[str, Any]]) -> Judged:
        """Eq. 7's cosine after subtracting the mean embedding a query, the same to another image's embeddings, eq. 8,
        codebook use, and caption retrieval from the decoded tokens."""
        use = CodebookUse(self.model.codebook_size)
        causal, decoded, generated, texts, errors = [], [], [], [], []
        for batch in batches:
            causal_embeds = self.model.causal_embeds(batch["images"]).float()
            output = self.model.reconstruct(causal_embeds)
            target = self.frozen["text"].token_features(text_of(batch))
            use.update(output.quantized.indices)
            causal.append(causal_embeds)
            decoded.append(output.cosine_embeds.float())
            generated.append(mean_token_features(output.generation_embeds))
            texts.append(mean_token_features(target))
            errors.append((output.generation_embeds.float() - target).square().mean((1, 2)))
        targets, outputs = torch.cat(causal), torch.cat(decoded)
        mean = targets.mean(0)
        own = F.cosine_similarity(outputs - mean, targets - mean, dim=-1).mean().item()
        other = F.cosine_similarity(outputs - mean, targets.roll(1, 0) - mean, dim=-1).mean().item()
        similarities = torch.cat(generated) @ torch.cat(texts).T
        figures = {
            "cosine": F.cosine_similarity(outputs, targets, dim=-1).mean().item(),
            "centred_cosine": own,
            "centred_cosine_other_image": other,
            "generation_mse": torch.cat(errors).mean().item(),
            **use.compute(),
            **{f"caption_recall@{k}": recall_at(similarities, k) for k in (1, 5, 10)},
        }
        return Judged(figures, None)

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.model.without_cosine_stack().save_pretrained(folder)


def later_parts(model: SemanticTokenizer) -> list[nn.Module]:
    """What stage 2 trains."""
    parts = [model.encode_task, model.quantizer, model.decode_task, model.cosine, model.generation]
    return [part for part in parts if part is not None]


def recall_at(similarities: Float[Tensor, "n n"], k: int) -> float:
    """Share of rows whose own column is among the `k` largest. Ties count against: a constant matrix scores chance or less."""
    own = similarities.diagonal()[:, None]
    rank = (similarities >= own).sum(1)
    return (rank <= k).double().mean().item()
