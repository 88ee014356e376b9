"""Trains Branch II. Stage 1 aligns the last causal embedding with text (eq. 6); stage 2 trains what follows the Q-Former."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import resize_bicubic
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.perceptual import EfficientNetDistance
from hybrid_tokenizer.quantizers import vq_loss
from hybrid_tokenizer.semantic import SemanticTokenizer
from hybrid_tokenizer.semantic.contrastive import HEADS_FOLDER, ContrastiveConfig, ContrastiveHeads, floor_value
from hybrid_tokenizer.semantic.losses import contrastive_loss, cosine_loss, generation_loss
from hybrid_tokenizer.text import BertTokens, CachedText, CLIPText, MiniLMText, mean_token_features, text_of
from hybrid_tokenizer.training.config import QFORMER, ContrastiveOptions, QuantizeOptions
from hybrid_tokenizer.training.objective import Objective, Validated

TEACHER_SIZE = 192
"""EfficientNet-lite's last stage has stride 32, so 6 x 6 positions. At 256 px the teacher would take half of a step's time."""
TEACHER_WIDTH = 320
SENTENCE_TEMPERATURE = 0.05


class SentenceHeads(nn.Module):
    """Projections of eq. 6 for a frozen sentence encoder, the temperature, and `teacher`, by which patches predict the map of a
    feature network (`ContrastiveOptions.distillation`)."""

    def __init__(self, width: int, vision_width: int, text_width: int, options: ContrastiveOptions):
        super().__init__()
        self.vision_projection = nn.Linear(width, options.feature_width)
        self.text_projection = nn.Linear(text_width, options.feature_width)
        self.temperature = nn.Parameter(torch.tensor(options.temperature))
        self.teacher = nn.Linear(vision_width, TEACHER_WIDTH)
        self.teacher.requires_grad_(options.distillation > 0)  # distributed training refuses weights without a gradient


class ContrastiveObjective(Objective):
    """Stage 1: eq. 6 between the last causal embedding and a caption. Subclasses turn captions into features.

    `model` is the whole tokenizer, and the parts that stage 2 trains have no gradient here.
    """

    next_command = "hybrid-tokenizer train-semantic stage=quantize semantic.init={final}"

    def __init__(self, model: SemanticTokenizer, options: ContrastiveOptions):
        super().__init__()
        self.model, self.options = model, options
        for part in later_parts(model):
            part.requires_grad_(False)
        if not options.train_vision:
            model.vision.requires_grad_(False)
            model.vision.body.post_layernorm.requires_grad_(True)

    def train(self, mode: bool = True) -> "ContrastiveObjective":
        super().train(mode)
        if not self.options.train_vision:
            self.model.vision.eval()
        return self

    @abstractmethod
    def image_features(self, causal_embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b f"]:
        """z_i of eq. 6, with unit length."""

    @abstractmethod
    def text_features(self, captions: list[str]) -> Float[Tensor, "b f"]:
        """t_i of eq. 6, with unit length."""

    @abstractmethod
    def floored_temperature(self) -> Float[Tensor, ""]:
        """The learnt temperature, or its floor where that is higher."""

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        image_features, text_features, further = self.features(batch["images"], text_of(batch))
        contrastive = contrastive_loss(
            image_features,
            text_features,
            self.floored_temperature(),
            label_smoothing=self.options.label_smoothing,
            literal_eq6=self.options.literal_eq6,
            reference_gather=self.options.reference_gather,
        )
        total = contrastive + sum(getattr(self.options, name) * value for name, value in further.items())
        return {
            "contrastive": contrastive,
            "temperature": self.floored_temperature().detach(),
            **further,
            "total": total,
        }

    def features(
        self, images: Float[Tensor, "b 3 h w"], captions: list[str]
    ) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b f"], dict[str, Float[Tensor, ""]]]:
        """Both sides of eq. 6 and the losses beside it, in chunks that run again for their gradient."""
        size, replayed = self.options.chunk_size, torch.is_grad_enabled()
        if size is None or size >= len(captions):
            return self.features_of_chunk(images, captions)
        parts = []
        for first in range(0, len(captions), size):
            chunk = images[first : first + size], captions[first : first + size]
            parts.append(
                checkpoint(self.features_of_chunk, *chunk, use_reentrant=False)
                if replayed
                else self.features_of_chunk(*chunk)
            )
        of_images, of_texts, losses = zip(*parts, strict=True)
        shares = [len(part) / len(captions) for part in of_images]
        further = {
            name: torch.stack([share * one[name] for share, one in zip(shares, losses, strict=True)]).sum()
            for name in losses[0]
        }
        return torch.cat(of_images), torch.cat(of_texts), further

    def features_of_chunk(
        self, images: Float[Tensor, "b 3 h w"], captions: list[str]
    ) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b f"], dict[str, Float[Tensor, ""]]]:
        """The same for images whose activations fit in memory together."""
        image_embeds = self.model.image_embeds(images)
        image_features = self.image_features(self.model.causal_qformer(image_embeds))
        return image_features, self.text_features(captions), self.further_losses({"images": images}, image_embeds)

    def further_losses(self, batch: dict[str, Any], image_embeds: Tensor) -> dict[str, Float[Tensor, ""]]:
        """Losses beside eq. 6. Each is weighted by the option of its name."""
        return {}

    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """Retrieval among the validation pairs, in both directions."""
        image_rows, text_rows = [], []
        for batch in batches:
            image_rows.append(self.image_features(self.model.causal_embeds(batch["images"])))
            text_rows.append(self.text_features(text_of(batch)))
        similarities = torch.cat(image_rows) @ torch.cat(text_rows).T
        figures = {f"image_to_text_recall@{k}": recall_at(similarities, k) for k in (1, 5, 10)}
        figures |= {f"text_to_image_recall@{k}": recall_at(similarities.T, k) for k in (1, 5, 10)}
        return Validated(figures, None)

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.model.save_pretrained(folder)


class SentenceContrastive(ContrastiveObjective):
    """Stage 1 with captions encoded by the embedded preset's frozen sentence encoder and a projection."""

    def __init__(self, model: SemanticTokenizer, options: ContrastiveOptions):
        super().__init__(model, options)
        self.heads = SentenceHeads(model.config.width, model.config.vision_width, MiniLMText.width, options)
        helpers: dict[str, nn.Module] = {"text": MiniLMText()}
        if options.distillation:
            helpers["teacher"] = EfficientNetDistance("lite0")
        self.freeze(**helpers)

    def image_features(self, causal_embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b f"]:
        return F.normalize(self.heads.vision_projection(causal_embeds[:, -1]).float(), dim=-1)

    def text_features(self, captions: list[str]) -> Float[Tensor, "b f"]:
        return F.normalize(self.heads.text_projection(self.frozen["text"].sentence_features(captions)).float(), dim=-1)

    def floored_temperature(self) -> Float[Tensor, ""]:
        return floor_value(self.heads.temperature, self.options.temperature_floor)

    def further_losses(self, batch: dict[str, Any], image_embeds: Tensor) -> dict[str, Float[Tensor, ""]]:
        return {"distillation": self.distillation(image_embeds, batch["images"])} if self.options.distillation else {}

    def distillation(self, image_embeds: Tensor, images: Tensor) -> Float[Tensor, ""]:
        """1 - cosine between each patch's prediction and the teacher's features at its place."""
        with torch.no_grad():
            target = self.frozen["teacher"].features(resize_bicubic(images, (TEACHER_SIZE, TEACHER_SIZE)))[-1]
        side = round((image_embeds.shape[1] - 1) ** 0.5)
        patches = rearrange(self.heads.teacher(image_embeds[:, 1:]), "b (h w) d -> b d h w", h=side)
        pooled = F.adaptive_avg_pool2d(patches.float(), target.shape[-2:])
        return (1 - F.cosine_similarity(pooled, target, dim=1)).mean()


class QFormerContrastive(ContrastiveObjective):
    """Stage 1 as in BLIP-2 and SEED: a caption goes through the causal Q-Former's self-attention, and its [CLS] output counts.

    Export writes the heads beside the tokenizer, so that stage 1 can continue from that folder.
    """

    def __init__(
        self, model: SemanticTokenizer, options: ContrastiveOptions, heads: ContrastiveHeads, tokens: BertTokens
    ):
        super().__init__(model, options)
        if tokens.vocab_size > heads.config.vocab_size:
            raise HybridTokenizerError(
                f"the tokenizer has {tokens.vocab_size} words, the stage-1 heads {heads.config.vocab_size}; "
                "give the tokenizer that they were trained with as contrastive.tokenizer"
            )
        heads.config = replace(heads.config, temperature_floor=options.temperature_floor)
        self.heads, self.tokens = heads, tokens
        self.freeze()

    def image_features(self, causal_embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b f"]:
        return F.normalize(self.heads.image_features(causal_embeds).float(), dim=-1)

    def text_features(self, captions: list[str]) -> Float[Tensor, "b f"]:
        ids, mask = (tensor.to(self.heads.temperature.device, non_blocking=True) for tensor in self.tokens(captions))
        return F.normalize(self.heads.text_features(self.model.causal_qformer, ids, mask).float(), dim=-1)

    def floored_temperature(self) -> Float[Tensor, ""]:
        return self.heads.floored_temperature()

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        super().export(folder, val_batches)
        self.heads.save_pretrained(folder / HEADS_FOLDER)


def build_contrastive(model: SemanticTokenizer, options: ContrastiveOptions, init: str | None) -> ContrastiveObjective:
    """Stage 1 for `options.text`. `init` is the folder that `model` was loaded from; heads stored there are used."""
    if options.text != QFORMER:
        return SentenceContrastive(model, options)
    tokens = BertTokens(options.tokenizer)
    stored = None if init is None else Path(init) / HEADS_FOLDER
    if stored is not None and stored.is_dir():
        heads = ContrastiveHeads.from_pretrained(stored)
    else:
        reason = "semantic.init is not given" if stored is None else f"{stored} does not exist"
        print(f"stage-1 heads start from random weights: {reason}", flush=True)
        sizes = ContrastiveConfig.matching(model.config, tokens.vocab_size, feature_width=options.feature_width)
        heads = ContrastiveHeads(replace(sizes, temperature=options.temperature))
    return QFormerContrastive(model, options, heads, tokens)


class QuantizeObjective(Objective):
    """Stage 2: vision encoder and causal Q-Former frozen; codebook, stacks and reverse Q-Former trained."""

    next_command = "hybrid-tokenizer eval components.semantic={final}"

    def __init__(
        self,
        model: SemanticTokenizer,
        options: QuantizeOptions,
        text: MiniLMText | CLIPText | CachedText | None = None,
    ):
        """text: gives the targets of eq. 8, as wide as the generation embeddings; None is the embedded sentence encoder."""
        super().__init__()
        if model.cosine is None:  # a published tokenizer
            model = model.with_cosine_stack()
            print("the cosine stack of eq. 7 starts from random weights: this tokenizer comes without it", flush=True)
        text = MiniLMText() if text is None else text
        made = (model.config.num_generation_embeds, model.config.generation_width)
        if made != (text.length, text.width):
            raise HybridTokenizerError(
                f"the text encoder gives {text.length} x {text.width} per caption, this tokenizer {made[0]} x {made[1]}; "
                "give the Stable Diffusion in use as quantize.text, and a SEED v1 tokenizer (SEED-2 has one image embedding)"
            )
        self.model, self.options = model, options
        for part in (model.vision, model.causal_qformer):
            part.requires_grad_(False)
        self.freeze(text=text)

    def train(self, mode: bool = True) -> "QuantizeObjective":
        super().train(mode)
        self.model.vision.eval()  # SEED leaves the dropout of its frozen Q-Former on, which makes the target noisy
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
        if self.options.sentence:
            means = (mean_token_features(embeds) for embeds in (output.generation_embeds, target))
            losses["sentence"] = contrastive_loss(*means, target.new_full((), SENTENCE_TEMPERATURE))
        total = sum(getattr(self.options, name) * value for name, value in losses.items())
        return {**losses, "total": total}

    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """Eqs. 7 and 8, codebook use, and caption retrieval from the decoded tokens.

        The centred cosines subtract each query's mean embedding first. That of another image's embeddings shows chance level.
        """
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
        return Validated(figures, None)

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.model.without_cosine_stack().save_pretrained(folder)


def later_parts(model: SemanticTokenizer) -> list[nn.Module]:
    """The parts that stage 2 trains."""
    parts = [model.encode_task, model.quantizer, model.decode_task, model.cosine, model.generation]
    return [part for part in parts if part is not None]


def recall_at(similarities: Float[Tensor, "n n"], k: int) -> float:
    """Share of rows whose own column is among the `k` largest. Ties count as wrong, so a constant matrix scores no better than
    chance."""
    own = similarities.diagonal()[:, None]
    rank = (similarities >= own).sum(1)
    return (rank <= k).double().mean().item()
