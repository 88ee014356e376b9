"""The stream that training draws from: draw number n is the same crop of the same image whatever the workers, ranks or
restarts, so a resumed run continues exactly where it was killed."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hybrid_tokenizer.data.config import CropConfig, Verify
from hybrid_tokenizer.data.items import Item, item_captions, open_item
from hybrid_tokenizer.data.open import UnreadableImage
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_pil

MAX_CONSECUTIVE_FAILURES = 100


def random_crop(image: Image.Image, config: CropConfig, rng: np.random.Generator) -> Image.Image:
    """One random crop."""
    return apply_crop(image, config.size, *draw_crop(image.size, config, rng))


def draw_crop(
    size: tuple[int, int], config: CropConfig, rng: np.random.Generator
) -> tuple[tuple[float, float, float, float], bool]:
    """The box (left, top, right, bottom) of a random crop of an image of (width, height), and whether it is flipped.

    All draws are always made, so one option does not shift the others' randomness.
    """
    width, height = size
    share, across, down, flip = rng.uniform(*config.scale), rng.random(), rng.random(), rng.random()
    side = share * min(size)
    left, top = across * (width - side), down * (height - side)
    return (left, top, min(left + side, width), min(top + side, height)), bool(config.flip and flip < 0.5)


def apply_crop(image: Image.Image, size: int, box: tuple[float, float, float, float], flipped: bool) -> Image.Image:
    """The box as a square of `size` px, mirrored if `flipped`."""
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else crop


class TrainingStream(Dataset):
    """Endless shuffled epochs over `items`, addressed by draw number.

    Each epoch is a permutation seeded by (seed, epoch); the crop and the caption of a draw are seeded by (seed, draw).
    An unreadable image is replaced by the next draw's image and named in `skipped`. `verify` is how far each image is
    checked for damage, every time that it is drawn.
    """

    resident = False
    """Whether draws are tensors on the training device, which loader workers cannot make."""

    def __init__(self, items: Sequence[Item], crop: CropConfig, seed: int, verify: Verify = "cheap"):
        if not items:
            raise HybridTokenizerError("no training images are left; add images or lower the held-out share")
        self.items, self.crop, self.seed, self.verify = list(items), crop, seed, verify
        self._permutation = lru_cache(maxsize=2)(self._permute)

    @property
    def epoch_length(self) -> int:
        """Images of one epoch."""
        return len(self.items)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.items))

    def __getstate__(self) -> dict[str, Any]:  # an lru_cache cannot be pickled to spawned workers
        return {"items": self.items, "crop": self.crop, "seed": self.seed, "verify": self.verify}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def open(self, item: Item) -> Any:
        """What `cut` reads. Raises UnreadableImage."""
        return open_item(item, self.verify)

    def cut(self, picture: Any, rng: np.random.Generator) -> Tensor:
        """A random crop (3 s s) in [-1, 1]."""
        return from_pil(random_crop(picture, self.crop, rng))

    def __getitem__(self, draw: int) -> dict[str, Any]:
        skipped = []
        for attempt in range(draw, draw + MAX_CONSECUTIVE_FAILURES):
            epoch, position = divmod(attempt, len(self.items))
            item = self.items[self._permutation(epoch)[position]]
            try:
                picture, captions = self.open(item), item_captions(item)
            except UnreadableImage as error:
                skipped.append((error.name, error.reason))
                continue
            rng = np.random.default_rng((self.seed, 1, draw))
            crop = self.cut(picture, rng)
            caption = captions[rng.integers(len(captions))]
            return {"images": crop, "captions": caption, "skipped": skipped}
        raise HybridTokenizerError(
            f"{MAX_CONSECUTIVE_FAILURES} images in a row are unreadable, the last: {skipped[-1][0]}: {skipped[-1][1]}"
        )


class DrawSampler(Sampler[list[int]]):
    """Batches of draw numbers from micro-batch `first` on, for one rank of several."""

    def __init__(self, batch_size: int, first: int, rank: int, world_size: int):
        self.batch_size, self.first, self.rank, self.world_size = batch_size, first, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.first
        while True:
            start = (micro * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))
            micro += 1


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Tensors stacked, `skipped` joined, everything else a list: images Float[b 3 s s], captions list[str], ..."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        batch[name] = torch.stack(values) if isinstance(first, Tensor) else values
    batch["skipped"] = [entry for skipped in batch["skipped"] for entry in skipped]
    return batch


def build_loader(
    stream: Dataset, batch_size: int, first: int = 0, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> DataLoader:
    """An endless loader that starts at micro-batch `first`."""
    resident = getattr(stream, "resident", False)
    num_workers = 0 if resident else num_workers
    return DataLoader(
        stream,
        batch_sampler=DrawSampler(batch_size, first, rank, world_size),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available() and not resident,
        persistent_workers=num_workers > 0,
        worker_init_fn=one_thread,
    )


def one_thread(_: int) -> None:
    """What a loader process does first."""
    torch.set_num_threads(1)  # decoding and resizing run in PIL; more threads only fight the training process
