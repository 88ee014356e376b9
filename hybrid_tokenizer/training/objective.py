"""What the loop trains: a module whose forward gives losses, and that can validate and export its component."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Validated(NamedTuple):
    """`figures` are finished means over the validation images; `pictures` are rows of images to look at, in [-1, 1]."""

    figures: dict[str, float]
    pictures: Float[Tensor, "rows columns 3 h w"] | None


class Objective(nn.Module, ABC):
    """One training stage.

    `model` is the component that is trained, averaged and exported. Modules under `frozen` (teachers, text towers, other
    branches) take no gradient, stay in eval mode and are never saved.
    """

    model: nn.Module
    frozen: nn.ModuleDict
    unused_parameters = False
    """True when some parameters take no part in some steps (a discriminator that starts late)."""

    def freeze(self, **modules: nn.Module) -> None:
        """Register frozen helpers."""
        self.frozen = nn.ModuleDict(modules)
        self.frozen.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Objective":
        super().train(mode)
        if hasattr(self, "frozen"):
            self.frozen.eval()
        return self

    @abstractmethod
    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Float[Tensor, ""]]:
        """Losses by name, among them `total`, the weighted sum that is minimised."""

    @abstractmethod
    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """Validation figures with the weights now in place (the loop puts the averaged ones there)."""

    @abstractmethod
    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        """Write the component as `from_pretrained` reads it."""

    def saved_state(self) -> dict[str, Tensor]:
        """Everything that trains, buffers included; nothing frozen."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("frozen.")}


def learning_rate_at(step: int, peak: float, floor: float, warmup_steps: int, max_steps: int) -> float:
    """Linear warm-up to `peak`, then a cosine down to `floor` at `max_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, progress)))))


def ema_decay_at(step: int, decay: float) -> float:
    """Averages over the steps there are: early on a long memory would only remember the initial weights."""
    return min(decay, (1 + step) / (10 + step))
