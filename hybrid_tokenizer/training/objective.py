"""The interface between loop and stages: a module whose forward gives losses, and that validates and exports its component."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class Validated(NamedTuple):
    """What a validation found."""

    figures: dict[str, float]
    """Means over the validation images."""
    pictures: Float[Tensor, "rows columns 3 h w"] | None
    """Rows of images to look at, in [-1, 1]."""


class Objective(nn.Module, ABC):
    """One training stage.

    A module has one of three places here. The loop trains, averages and exports `model`. Modules in `frozen` (teachers, text
    encoders, other branches) move to the device with it but take no gradient, stay in eval mode and are never saved. A
    module set by `refer_to` is not registered at all.
    """

    model: nn.Module
    frozen: nn.ModuleDict
    next_command = ""
    """What to run on the finished folder, which stands for {final}."""
    unused_parameters = False
    """Whether some parameters take no part in some steps, such as a discriminator that starts late."""
    exports_sharded = False
    """Whether `export` takes weights that FSDP has spread and is called by all processes. Otherwise it finds whole weights."""

    def freeze(self, **modules: nn.Module) -> None:
        """Register frozen helpers."""
        self.frozen = nn.ModuleDict(modules)
        self.frozen.requires_grad_(False).eval()

    def refer_to(self, **modules: nn.Module) -> None:
        """Set modules as plain attributes that are no submodules, so that this objective neither trains, moves nor saves them.

        Branch III's objectives need a whole `DiffusionDecoder` to decode and to export, while its parts already have a place
        in `model` or `frozen` or must stay as they are. Plain assignment would register it a second time.
        """
        for name, module in modules.items():
            object.__setattr__(self, name, module)

    def train(self, mode: bool = True) -> "Objective":
        super().train(mode)
        if hasattr(self, "frozen"):
            self.frozen.eval()
        return self

    @abstractmethod
    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Float[Tensor, ""]]:
        """Losses by name. `total`, the weighted sum, is minimised; the others are logged."""

    @abstractmethod
    def validate(self, batches: list[dict[str, Any]]) -> Validated:
        """Validation figures with the current weights. The loop has put the averaged ones in place."""

    @abstractmethod
    def export(self, folder: Path, val_batches: list[dict[str, Any]]) -> None:
        """Write the component to `folder`, in the form that its `from_pretrained` reads."""

    def saved_state(self) -> dict[str, Tensor]:
        """Everything that trains, buffers included; nothing frozen."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("frozen.")}


def learning_rate_at(step: int, peak: float, floor: float, warmup_steps: int, max_steps: int) -> float:
    """Linear warm-up to `peak`, then a cosine down to `floor` at `max_steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def ema_decay_at(step: int, decay: float) -> float:
    """The decay at `step`, below `decay` in early steps, where a long average would mostly hold the initial weights."""
    return min(decay, (1 + step) / (10 + step))
