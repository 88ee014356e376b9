"""Branch I: eq. 5 at the guide's size plus the VQ loss; perceptual and adversarial terms by weight."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import load_component_state, load_strict
from hybrid_tokenizer.guide import GuideConfig, GuideTokenizer
from hybrid_tokenizer.images import resize_area, resize_bicubic
from hybrid_tokenizer.metrics.codebook import CodebookUse
from hybrid_tokenizer.metrics.perceptual import EfficientNetDistance
from hybrid_tokenizer.metrics.pixel import psnr
from hybrid_tokenizer.quantizers import vq_loss
from hybrid_tokenizer.training.objective import Judged, Objective
from hybrid_tokenizer.training.weights import GuideLossWeights

SMALLEST_PERCEPTUAL_SIDE = 64
"""Feature distances mean little on smaller images (spec of LPIPS' backbones)."""


class GuideObjective(Objective):
    """Trains a `GuideTokenizer`. The target of eq. 4 is made once, on the device."""

    model: GuideTokenizer

    def __init__(self, model: GuideTokenizer, weights: GuideLossWeights):
        super().__init__()
        self.model, self.weights = model, weights
        self.freeze(**({"perceptual": EfficientNetDistance("lite0")} if weights.perceptual else {}))

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        images = batch["images"]
        output = self.model(images)
        guides = output.guide_images.float()
        target = resize_area(images, tuple(guides.shape[-2:]))
        # mean over the guide's own pixels: eq. 5's upper limit H*W*C is a slip, the resized target has fewer values
        losses = {
            "recon": (guides - target).square().mean(),
            "vq": vq_loss(output.quantized, self.model.config.quantizer),
        }
        total = losses["recon"] + self.weights.vq * losses["vq"]
        if self.weights.perceptual and guides.shape[-1] >= SMALLEST_PERCEPTUAL_SIDE:
            losses["perceptual"] = self.frozen["perceptual"](guides, target).mean()
            total = total + self.weights.perceptual * losses["perceptual"]
        return {**losses, "total": total}

    def judge(self, batches: list[dict[str, Any]]) -> Judged:
        """PSNR at the guide's size and, bicubic back up, at full size; use of the codebook."""
        at_guide, at_full, rows = [], [], []
        use = CodebookUse(self.model.codebook_size)
        for batch in batches:
            images = batch["images"]
            indices = self.model.encode(images)
            guides = self.model.decode(indices).float().clamp(-1, 1)
            target = resize_area(images, tuple(guides.shape[-2:]))
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
    """Random weights, or those of a GuideTokenizer folder of the same configuration."""
    model = GuideTokenizer(config)
    if init is not None:
        load_strict(model, load_component_state(Path(init)), init)
    return model
