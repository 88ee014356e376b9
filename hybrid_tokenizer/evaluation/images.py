"""Reference images of an evaluation: square crops in a fixed order. Unusable files are skipped and listed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from hybrid_tokenizer.data.config import Verify
from hybrid_tokenizer.data.items import folder_of, item_path, list_items, open_item
from hybrid_tokenizer.data.open import UnreadableImage, open_rgb
from hybrid_tokenizer.data.samples import sample_photographs
from hybrid_tokenizer.data.shards import SHARD_SUFFIX
from hybrid_tokenizer.devices import rank_and_world_size
from hybrid_tokenizer.errors import HybridTokenizerError, printable
from hybrid_tokenizer.evaluation.config import EvalData
from hybrid_tokenizer.images import fit_square, from_uint8

CACHE_BYTES = 256 * 2**20


class EvalBatch(NamedTuple):
    """Positions in the set, references, and the next image of each, which some controls decode from."""

    positions: range
    references: Float[Tensor, "b 3 r r"]
    next_images: Float[Tensor, "b 3 r r"]


class EvalImages:
    """Square references in the given order: the shorter side resized to `size`, then the centre cropped.

    The constructor reads every image once. Each unusable one is reported through `say` as `skipped PATH: reason` and kept in
    `skipped`. References stay in memory up to `CACHE_BYTES`; the others are read again when needed. In a distributed run
    only the first process reports.

    Args:
        names: the images' names: paths relative to `root` where there is one. `sources` keeps those that were usable, and
            `names` has them as results show them, with escapes for control characters and for bytes that are not UTF-8.
        read: returns the RGB image of a name, or raises `UnreadableImage`.
        max_images: take only the first usable ones.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str], Image.Image],
        size: int,
        *,
        root: Path = Path(),
        max_images: int | None = None,
        say: Callable[[str], None] = tqdm.write,
        progress: bool = True,
    ):
        leads = rank_and_world_size()[0] == 0
        self.size = size
        self.names: list[str] = []
        self.sources: list[str] = []
        self.skipped: list[dict[str, str]] = []
        self._read, self._root = read, root
        self._cache: dict[str, UInt8[Tensor, "3 r r"]] = {}
        pixels = hashlib.sha256()
        for name in tqdm(names, desc="reading images", unit="image", disable=not (progress and leads), leave=False):
            if len(self.names) == max_images:
                break
            try:
                levels = self._crop(name)
            except UnreadableImage as error:
                self.skipped.append({"path": error.name, "reason": error.reason})
                if leads:
                    say(f"skipped {error.name}: {error.reason}")
                continue
            self.names.append(printable(name))
            self.sources.append(name)
            pixels.update(levels.numpy().tobytes())
            if (len(self._cache) + 1) * levels.nbytes <= CACHE_BYTES:
                self._cache[name] = levels
        if not self.names:
            raise HybridTokenizerError(
                f"none of the {len(names)} image(s) under {self._root} can be used, each is listed above with its reason; "
                "give a folder with readable images that are large enough"
            )
        self.pixels_hash = pixels.hexdigest()
        self.names_hash = hashlib.sha256(os.fsencode("\n".join(self.sources))).hexdigest()

    @classmethod
    def open(
        cls, source: str | os.PathLike[str] | None, size: int, verify: Verify = "full", **options: Any
    ) -> "EvalImages":
        """A folder, one file, WebDataset shards, or the built-in photographs (None). Options as for the constructor.

        verify: how thoroughly every image is checked for damage, see `hybrid_tokenizer.data.verify`.
        """
        if source is None:
            return cls.from_samples(size, **options)
        is_image = Path(source).is_file() and Path(source).suffix != SHARD_SUFFIX
        return (cls.from_file if is_image else cls.from_folder)(source, size, verify, **options)

    @classmethod
    def from_folder(
        cls, root: str | os.PathLike[str], size: int, verify: Verify = "full", **options: Any
    ) -> "EvalImages":
        """A folder of images, nested or flat, or of shards; names are paths relative to it. Options as for the constructor."""
        root = Path(root)
        items = list_items(root, captions=False, say=options.get("say", tqdm.write))
        folder = folder_of(root)
        by_name = {item_path(item).relative_to(folder).as_posix(): item for item in items}
        return cls(list(by_name), lambda name: open_item(by_name[name], verify), size, root=folder, **options)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], size: int, verify: Verify = "full", **options: Any
    ) -> "EvalImages":
        """One image file."""
        path = Path(path)
        return cls([path.name], lambda name: open_rgb(path, verify=verify), size, root=path.parent, **options)

    @classmethod
    def from_samples(cls, size: int, **options: Any) -> "EvalImages":
        """The built-in photographs."""
        photographs = sample_photographs()
        return cls(list(photographs), photographs.__getitem__, size, **options)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Float[Tensor, "3 r r"]:
        name = self.sources[index]
        return from_uint8(self._cache[name] if name in self._cache else self._crop(name))

    def batches(self, batch_size: int) -> Iterator[EvalBatch]:
        """All images in order. The last image's next is the first; a single image's next is a built-in photograph."""
        for start in range(0, len(self), batch_size):
            yield self._batch(start, batch_size)

    def own_batches(self, batch_size: int, device: torch.device | str) -> Iterator[EvalBatch]:
        """This process's share of the batches in a distributed run, on `device`. It may be empty."""
        rank, world_size = rank_and_world_size()
        for start in range(rank * batch_size, len(self), world_size * batch_size):
            batch = self._batch(start, batch_size)
            yield batch._replace(references=batch.references.to(device), next_images=batch.next_images.to(device))

    def _batch(self, start: int, batch_size: int) -> EvalBatch:
        stop = min(start + batch_size, len(self))
        images = [self[i] for i in range(start, stop)]
        follower = self[stop % len(self)] if len(self) > 1 else self._stranger()
        return EvalBatch(range(start, stop), torch.stack(images), torch.stack([*images[1:], follower]))

    def _stranger(self) -> Float[Tensor, "3 r r"]:
        crops = (from_uint8(_levels(photograph, self.size)) for photograph in sample_photographs().values())
        return next(crop for crop in crops if not torch.equal(crop, self[0]))

    def _crop(self, name: str) -> UInt8[Tensor, "3 r r"]:
        image = self._read(name)
        if min(image.size) < self.size / 4:  # a score would mostly measure the enlargement
            reason = (
                f"{image.width}x{image.height} pixels, the shorter side is under a quarter of image_size={self.size}"
            )
            raise UnreadableImage(self._root / name, reason)
        return _levels(image, self.size)


def open_images(data: EvalData, **options: Any) -> EvalImages:
    """The images of a configuration. Options as for EvalImages."""
    return EvalImages.open(data.root, data.image_size, data.verify, max_images=data.max_images, **options)


def _levels(image: Image.Image, size: int) -> UInt8[Tensor, "3 r r"]:
    return rearrange(torch.from_numpy(np.array(fit_square(image, size))), "h w c -> c h w").contiguous()
