"""What the loop needs to know, whatever it trains."""

import math
from dataclasses import dataclass, field

from hybrid_tokenizer.errors import HybridTokenizerError

PRECISIONS = ("auto", "no", "bf16")
TRACKERS = ("tensorboard", "wandb", "none")
AT_LEAST_ONE = (
    "max_steps", "batch_size", "accumulation", "save_every", "keep_checkpoints", "validate_every", "log_every",
    "max_val_images", "num_threads",
)  # fmt: skip
AT_LEAST_ZERO = ("learning_rate", "min_learning_rate", "warmup_steps", "weight_decay", "num_workers", "seed")


@dataclass
class TrainingConfig:
    """`batch_size` is one process's micro-batch; a step sees batch_size * accumulation * processes images.

    `num_threads` fixes the CPU kernels' thread count, because sums split over threads round differently: with it a
    one-process CPU run gives the same weights whatever the environment says. It is not used on a GPU.
    """

    max_steps: int = 24
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 4e-4
    min_learning_rate: float = 2e-5
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "auto"
    compile: bool = False
    seed: int = 0
    num_workers: int = 1
    num_threads: int = 2
    save_every: int = 100
    keep_checkpoints: int = 2
    validate_every: int = 100
    max_val_images: int = 32
    log_every: int = 10
    max_minutes: float | None = None
    tracker: str = "tensorboard"
    wandb_project: str = "hybrid_tokenizer"
    wandb_mode: str = "offline"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.mixed_precision not in PRECISIONS:
            raise HybridTokenizerError(
                f"training.mixed_precision={self.mixed_precision!r} is unknown; use one of {', '.join(PRECISIONS)}"
            )
        if self.tracker not in TRACKERS:
            raise HybridTokenizerError(
                f"training.tracker={self.tracker!r} is unknown; use one of {', '.join(TRACKERS)}"
            )
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise HybridTokenizerError(f"training.{name}={value} must be a finite number")
        for names, least in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0)):
            for name in names:
                if getattr(self, name) < least:
                    raise HybridTokenizerError(f"training.{name}={getattr(self, name)} must be at least {least}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise HybridTokenizerError(f"training.betas={self.betas} must be two numbers in [0, 1), e.g. [0.9, 0.99]")
        if self.max_grad_norm <= 0:
            raise HybridTokenizerError(
                f"training.max_grad_norm={self.max_grad_norm} must be positive; a large one clips nothing"
            )
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise HybridTokenizerError(f"training.max_minutes={self.max_minutes} must be positive; null sets no limit")
        if not 0 <= self.ema_decay < 1:
            raise HybridTokenizerError(f"training.ema_decay={self.ema_decay} must be in [0, 1); 0 turns averaging off")
