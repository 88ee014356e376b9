"""Trains Branch I: eq. 5 at the guide's size and the VQ loss, optionally with perceptual and adversarial terms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from hybrid_tokenizer.devices import sum_over_ranks
from hybrid_tokenizer.guide import GuideTokenizer
from hybrid_tokenizer.guide.discriminator import DiscriminatorConfig, PatchDiscriminator
from hybrid_tokenizer.guide.losses import (
    adaptive_weight,
    adversarial_factor,
    adversarial_loss,
    discriminator_loss,
    guide_target,
    perceptual_loss,
    recon_loss,
)
from hybrid_tokenizer.images import resize_bicubic
from hybrid_tokenizer.metrics.codebook import CodebookUse, codebook_usage
from hybrid_tokenizer.metrics.pixel import psnr
from hybrid_tokenizer.perceptual import EfficientNetDistance
from hybrid_tokenizer.quantizers import vq_loss
from hybrid_tokenizer.training.config import GuideLossOptions
from hybrid_tokenizer.training.objective import Objective, Validated


class CodebookWatch:
    """Reports a codebook of which less than `least` was used in `window` steps. A resumed run starts a new window."""

    def __init__(self, codebook_size: int, window: int = 500, least: float = 0.01):
        self.window, self.least = window, least
        self.counts, self.since = torch.zeros(codebook_size, dtype=torch.int64), -1

    def update(self, step: int, grids: Sequence[Int[Tensor, "b _ _"]]) -> None:
        """Count the codes of a micro-batch, and report a dead codebook at the end of a window."""
        if self.since < 0:
            self.since = step
        self.counts = self.counts.to(grids[0].device)  # counted there: the host reads them once in a window
        if step - self.since >= self.window:
            share = codebook_usage(sum_over_ranks(self.counts))
            if share < self.least and not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
                print(
                    f"dead codebook: {share:.2%} of {len(self.counts)} codes were used in steps {self.since} to {step - 1}; "
                    "earlier checkpoints may be better: stop, lower training.learning_rate, or take "
                    "guide.quantizer.kind=ema, which restarts unused codes",
                    flush=True,
                )
            self.counts, self.since = torch.zeros_like(self.counts), step
        for grid in grids:
            codes = grid.detach().flatten()
            self.counts.index_add_(0, codes, torch.ones_like(codes))


class GuideObjective(Objective):
    """Trains a `GuideTokenizer`."""

    model: GuideTokenizer
    next_command = "hybrid-tokenizer eval components.guide={final}"

    def __init__(self, model: GuideTokenizer, options: GuideLossOptions):
        super().__init__()
        self.model, self.options = model, options
        self.freeze(**({"perceptual": EfficientNetDistance("lite0")} if options.perceptual else {}))
        if options.adversarial:
            self.discriminator = PatchDiscriminator(DiscriminatorConfig(layers=options.discriminator_layers))
            self.discriminator.check_side(model.config.guide_size)
            self.unused_parameters = True  # before `adversarial_from`
        self.watch = CodebookWatch(model.codebook_size)

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        images = batch["images"]
        output = self.model(images)
        guides = output.guide_images.float()
        target = guide_target(images, tuple(guides.shape[-2:]))
        losses = {
            "recon": recon_loss(guides, target),
            "vq": vq_loss(output.quantized, self.model.config.quantizer),
        }
        total = losses["recon"] + self.options.vq * losses["vq"]
        if self.options.perceptual:
            losses["perceptual"] = perceptual_loss(guides, target, self.frozen["perceptual"])
            total = total + self.options.perceptual * losses["perceptual"]
        if self.options.adversarial and adversarial_factor(step, self.options.adversarial_from):
            terms = self.adversarial_terms(guides, target, total)
            total = total + self.options.adversarial * terms["adaptive_weight"] * terms["adversarial"]
            total = total + terms["discriminator"]
            losses |= terms
        if self.training:
            self.watch.update(step, output.indices)
        return {**losses, "total": total}

    def adversarial_terms(self, guides: Tensor, target: Tensor, rest: Tensor) -> dict[str, Tensor]:
        """The losses of tokenizer and discriminator. Each takes the other as constant, so that one backward pass and one
        optimizer serve both."""
        self.discriminator.requires_grad_(False)
        adversarial = adversarial_loss(self.discriminator(guides).float())
        self.discriminator.requires_grad_(True)
        weight = (
            adaptive_weight(rest, adversarial, self.model.last_weight) if torch.is_grad_enabled() else rest.new_ones(())
        )
        real, fake = self.discriminator(target).float(), self.discriminator(guides.detach()).float()
        return {
            "adversarial": adversarial,
            "discriminator": discriminator_loss(real, fake),
            "adaptive_weight": weight,
        }

    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """PSNR at the guide's size, PSNR of the guide enlarged to the image's size, and codebook use."""
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
        return Validated(figures, torch.cat(rows)[:8])

    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        self.model.save_pretrained(folder)
