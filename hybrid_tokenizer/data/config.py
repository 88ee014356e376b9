"""Which images a training run sees."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hybrid_tokenizer.errors import HybridTokenizerError

Verify = Literal["full", "cheap", "off"]
LEVELS = get_args(Verify)


@dataclass
class CropConfig:
    """A square crop of `scale` times the shorter side, at random, resized to `size` px (also up), flipped half of the time."""

    size: int = 256
    scale: tuple[float, float] = (0.7, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise HybridTokenizerError(
                f"crop_scale={list(self.scale)} must satisfy 0 < low <= high <= 1, e.g. [0.7, 1.0]"
            )
        if self.size < 1:
            raise HybridTokenizerError(f"image_size={self.size} must be at least 1 px")


def say_other_size(option: str, side: int, own: int, consequence: str, branch: str = "guide") -> None:
    """Where images of `side` px meet a branch that was made for `own` px, the first process says so, and what follows."""
    if side != own and os.environ.get("RANK", "0") == "0":
        print(f"{option}={side}, but the {branch} was made for {own} px: {consequence}", flush=True)


def check_level(level: str) -> None:
    """Raise for a value of `data.verify` that is none."""
    if level not in LEVELS:
        raise HybridTokenizerError(f"data.verify={level!r} is not known; use {' or '.join(LEVELS)}")


@dataclass
class DataConfig:
    """The images of a training run."""

    root: Any = "???"
    """A folder of images, a folder, .tar or brace pattern of WebDataset shards, or a list of these."""
    captions: Any = None
    """Captions of the images in `root`: the JSON of COCO's form (captions_train2017.json, or Karpathy's dataset_coco.json, of
    which "train" is read), or a list with one or null for each root. null is captions.jsonl in the folder, or the shards."""
    repeats: list[int] | None = None
    """How often an epoch goes through each root. null is once."""
    val_root: str | None = None
    """Validation images. null holds some of the training images out, by the hash of the relative path."""
    val_captions: str | None = None
    """As `captions`, of the images in `val_root`; "val" is read of Karpathy's JSON."""
    val_fraction: float = 0.02
    """Share of each root's files that is held out."""
    val_at_least: int = 8
    """How many files of each root are held out at least."""
    image_size: int = 256
    """Side of the crops. Smaller images are enlarged."""
    val_image_size: int | None = None
    """Side of the validation images. null is `image_size`."""
    crop_scale: list[float] = field(default_factory=lambda: [0.7, 1.0])
    """Shortest and longest side of a crop, as shares of the image's shorter side."""
    flip: bool = True
    """Mirror half of the crops."""
    verify: str = "cheap"
    """How thoroughly every image is checked for damage that decoders pass over: full, cheap or off."""
    resident_mb: int = 0
    """Megabytes of the training device's memory that keep all photographs, decoded once by `training.num_workers` processes;
    crops are then cut on the device. Where they do not fit, or with 0, loader workers read each crop from disk."""

    def __post_init__(self) -> None:
        listed = [self.root] if isinstance(self.root, str) else self.root
        if not isinstance(listed, list) or not listed or not all(isinstance(root, str) for root in listed):
            raise HybridTokenizerError(f"data.root={self.root!r} must be a folder or a list of folders")
        if self.repeats is not None and len(self.repeats) != len(self.roots):
            raise HybridTokenizerError(
                f"data.repeats={self.repeats} needs one number for each of the {len(self.roots)} roots"
            )
        files = self.captions if isinstance(self.captions, list) else self.captions_of_roots
        if len(files) != len(self.roots) or not all(file is None or isinstance(file, str) for file in files):
            raise HybridTokenizerError(
                f"data.captions={self.captions!r} needs one file or null for each of the {len(self.roots)} roots"
            )
        if self.val_captions is not None and self.val_root is None:
            raise HybridTokenizerError(
                f"data.val_captions={self.val_captions!r} is of the images in data.val_root; give that, too"
            )
        if min(self.repeats_of_roots, default=0) < 1:
            raise HybridTokenizerError(f"data.repeats={self.repeats} must be at least 1 each")
        if not 0 < self.val_fraction < 1:
            raise HybridTokenizerError(f"data.val_fraction={self.val_fraction} must lie between 0 and 1, e.g. 0.02")
        if self.resident_mb < 0:
            raise HybridTokenizerError(f"data.resident_mb={self.resident_mb} must not be negative; 0 reads from disk")
        for name in ("val_at_least", "image_size", "val_image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise HybridTokenizerError(f"data.{name}={value} must be at least 1")
        if len(self.crop_scale) != 2:
            raise HybridTokenizerError(f"data.crop_scale={self.crop_scale} must be two numbers, e.g. [0.7, 1.0]")
        check_level(self.verify)
        self.crop  # noqa: B018  its own check

    @property
    def crop(self) -> CropConfig:
        """The random crop of training."""
        return CropConfig(self.image_size, (self.crop_scale[0], self.crop_scale[1]), self.flip)

    @property
    def roots(self) -> list[Path]:
        return [Path(root) for root in ([self.root] if isinstance(self.root, str) else self.root)]

    @property
    def captions_of_roots(self) -> list[str | None]:
        if isinstance(self.captions, list):
            return list(self.captions)
        return [None] * len(self.roots) if self.captions is None else [self.captions]

    @property
    def repeats_of_roots(self) -> list[int]:
        return list(self.repeats) if self.repeats is not None else [1] * len(self.roots)
