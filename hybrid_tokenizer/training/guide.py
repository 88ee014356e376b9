"""Branch I: eq. 5 at the guide's size plus the VQ loss; perceptual and adversarial terms by weight."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig, GuideOutput, GuideTokenizer
from hybrid_tokenizer.guide.losses import guide_target, perceptual_loss, recon_loss
from hybrid_tokenizer.guide.warm_start import start_from
from hybrid_tokenizer.images import resize_bicubic
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.metrics.perceptual import EfficientNetDistance
from hybrid_tokenizer.metrics.pixel import psnr
from hybrid_tokenizer.quantizers import EmaQuantizer, Quantized, vq_loss
from hybrid_tokenizer.training.objective import Judged, Objective
from hybrid_tokenizer.training.weights import GuideLossWeights


class GuideObjective(Objective):
    """Trains a `GuideTokenizer`. The target of eq. 4 is made once, on the device."""

    model: GuideTokenizer

    def __init__(self, model: GuideTokenizer, weights: GuideLossWeights):
        super().__init__()
        self.model, self.weights = model, weights
        if weights.quantize_from and (not isinstance(model.quantizer, EmaQuantizer) or model.config.guide_scales):
            raise HybridTokenizerError(
                f"loss.quantize_from={weights.quantize_from} needs one grid and a running-mean codebook that can start late; "
                "use guide.quantizer.kind=ema, or loss.quantize_from=0"
            )
        self.freeze(**({"perceptual": EfficientNetDistance("lite0")} if weights.perceptual else {}))

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        images = batch["images"]
        if step < self.weights.quantize_from:
            self.model.quantizer.restart()  # here, so that only the first of a later step's micro-batches starts the codes
            output = self.continuous(images)
        else:
            output = self.model(images)
        guides = output.guide_images.float()
        target = guide_target(images, tuple(guides.shape[-2:]))
        losses = {
            "recon": recon_loss(guides, target),
            "vq": vq_loss(output.quantized, self.model.config.quantizer),
        }
        total = losses["recon"] + self.weights.vq * losses["vq"]
        if self.weights.colour:
            grid = tuple(output.indices[-1].shape[-2:])
            losses["colour"] = recon_loss(guide_target(guides, grid), guide_target(images, grid))
            total = total + self.weights.colour * losses["colour"]
        if self.weights.perceptual:
            losses["perceptual"] = perceptual_loss(guides, target, self.frozen["perceptual"])
            total = total + self.weights.perceptual * losses["perceptual"]
        return {**losses, "total": total}

    def continuous(self, images: Tensor) -> GuideOutput:
        """A pass around the codebook. Its indices are those of the codes that would have been taken."""
        features = self.model.features(images).float()
        indices = self.model.quantizer.lookup(features.detach())[1]
        zero = features.new_zeros(())
        return GuideOutput(self.model.decode_quantized(features), Quantized(features, indices, zero, zero), (indices,))

    def judge(self, batches: list[dict[str, Any]]) -> Judged:
        """PSNR at the guide's size and, bicubic back up, at full size; use of the codebook."""
        at_guide, at_full, rows = [], [], []
        use = CodebookUse(self.model.codebook_size)
        for batch in batches:
            images = batch["images"]
            indices = self.model.encode(images)
            guides = self.model.decode(indices).float().clamp(-1, 1)
            target = guide_target(images, tuple(guides.shape[-2:]))
            full = resize_bicubic(guides, tuple(images.shape[-2:])).clamp(-1, 1)
            at_guide.append(psnr(guides, target))
            at_full.append(psnr(full, images))
            for grid in indices:
                use.update(grid)
            rows.append(torch.stack([images, resize_bicubic(target, tuple(images.shape[-2:])), full], dim=1))
        figures = {
            "psnr": torch.cat(at_full).mean().item(),
            "psnr_guide": torch.cat(at_guide).mean().item(),
            **use.compute(),
        }
        return Judged(figures, torch.cat(rows)[:8])

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.model.save_pretrained(folder)


def start_guide(config: GuideConfig, init: str | None) -> GuideTokenizer:
    """Random weights, those of a stored guide tokenizer, or a warm start from an f8 MoVQ."""
    model = GuideTokenizer(config)
    if init is not None:
        start_from(model, init)
    return model
