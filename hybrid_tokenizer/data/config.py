"""Which images a training run sees."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_tokenizer.data.training import CropConfig
from hybrid_tokenizer.errors import HybridTokenizerError


@dataclass
class DataConfig:
    """`root` is a folder of images, a folder, .tar or brace pattern of WebDataset shards, or a list of these; `repeats` says
    how often an epoch goes through each.

    `val_root: null` holds out `val_fraction` of each root's files, at least `val_at_least`, by the hash of the relative
    path. Images smaller than the crop are enlarged. `val_image_size: null` validates at `image_size`.
    """

    root: Any = "???"
    repeats: list[int] | None = None
    val_root: str | None = None
    val_fraction: float = 0.02
    val_at_least: int = 8
    image_size: int = 256
    val_image_size: int | None = None
    crop_scale: list[float] = field(default_factory=lambda: [0.7, 1.0])
    flip: bool = True

    def __post_init__(self) -> None:
        listed = [self.root] if isinstance(self.root, str) else self.root
        if not isinstance(listed, list) or not listed or not all(isinstance(root, str) for root in listed):
            raise HybridTokenizerError(f"data.root={self.root!r} must be a folder or a list of folders")
        if self.repeats is not None and len(self.repeats) != len(self.roots):
            raise HybridTokenizerError(
                f"data.repeats={self.repeats} needs one number for each of the {len(self.roots)} roots"
            )
        if min(self.repeats_of_roots, default=0) < 1:
            raise HybridTokenizerError(f"data.repeats={self.repeats} must be at least 1 each")
        if not 0 < self.val_fraction < 1:
            raise HybridTokenizerError(f"data.val_fraction={self.val_fraction} must lie between 0 and 1, e.g. 0.02")
        for name in ("val_at_least", "image_size", "val_image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HybridTokenizerError(f"data.{name}={value} must be at least 1")
        if len(self.crop_scale) != 2:
            raise HybridTokenizerError(f"data.crop_scale={self.crop_scale} must be two numbers, e.g. [0.7, 1.0]")
        self.crop  # noqa: B018  its own check

    @property
    def crop(self) -> CropConfig:
        """The random crop of training."""
        return CropConfig(self.image_size, (self.crop_scale[0], self.crop_scale[1]), self.flip)

    @property
    def roots(self) -> list[Path]:
        return [Path(root) for root in ([self.root] if isinstance(self.root, str) else self.root)]

    @property
    def repeats_of_roots(self) -> list[int]:
        return list(self.repeats) if self.repeats is not None else [1] * len(self.roots)
