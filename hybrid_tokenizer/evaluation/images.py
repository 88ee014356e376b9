"""Reference images of an evaluation: square crops in a fixed order. Unusable files are skipped and listed."""

import hashlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

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
from hybrid_tokenizer.devices import gather_over_ranks, rank_and_world_size
from hybrid_tokenizer.errors import HybridTokenizerError, printable
from hybrid_tokenizer.evaluation.config import EvalData
from hybrid_tokenizer.images import fit_square, from_uint8

CACHE_BYTES = 256 * 2**20


class EvalBatch(NamedTuple):
    """Positions in the set, references, and the next image of each, which some controls decode from."""

    positions: range
    references: Float[Tensor, "b 3 r r"]
    next_images: Float[Tensor, "b 3 r r"]


class Crops:
    """8-bit crops by name: in memory up to `most_bytes`, the others in a temporary file that ends with the process.

    Without room for the file the others are not kept, and their images are read again.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES):
        self.most_bytes = most_bytes
        self._in_memory: dict[str, UInt8[Tensor, "3 r r"]] = {}
        self._in_file: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._file: IO[bytes] | None = None
        self._has_room = True

    def keep(self, name: str, levels: UInt8[Tensor, "3 r r"]) -> None:
        """Keep a crop that may be asked for again."""
        if (len(self._in_memory) + 1) * levels.nbytes <= self.most_bytes:
            self._in_memory[name] = levels
        elif self._has_room:
            try:
                self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the crops are
                place = self._file.seek(0, os.SEEK_END)
                if self._file.write(levels.numpy().tobytes()) < levels.nbytes:
                    raise OSError("no space left")
                self._in_file[name] = (place, tuple(levels.shape))
            except OSError:
                self._has_room = False

    def get(self, name: str) -> UInt8[Tensor, "3 r r"] | None:
        """The crop, None where it was not kept."""
        if name in self._in_memory:
            return self._in_memory[name]
        if name not in self._in_file or self._file is None:
            return None
        place, shape = self._in_file[name]
        pixels = os.pread(self._file.fileno(), math.prod(shape), place)
        return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(shape)


class EvalImages:
    """Square references in the given order: the shorter side resized to `size`, then the centre cropped.

    The constructor reads every image once. Each unusable one is reported through `say` as `skipped PATH: reason` and kept in
    `skipped`. The crops are kept, see `Crops`, so that no row decodes a file again. In a distributed run, in which every
    process builds the set, each decodes its share and hears the others', and only the first reports.

    Args:
        names: the images' names: paths relative to `root` where there is one. `sources` keeps those that were usable, and
            `names` has them as results show them, with escapes for control characters and for bytes that are not UTF-8.
        read: returns the RGB image of a name, or raises `UnreadableImage`.
        max_images: take only the first usable ones.
        num_workers: threads that read ahead, at first. 0 reads one after the other.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str], Image.Image],
        size: int,
        *,
        root: Path = Path(),
        max_images: int | None = None,
        num_workers: int = 0,
        say: Callable[[str], None] = tqdm.write,
        progress: bool = True,
    ):
        leads = rank_and_world_size()[0] == 0
        self.size = size
        self.names: list[str] = []
        self.sources: list[str] = []
        self.skipped: list[dict[str, str]] = []
        self._read, self._root = read, root
        self._crops = Crops(CACHE_BYTES)
        pixels = hashlib.sha256()
        read_names = shared_in_order(self._crop_or_reason, names, num_workers)
        shown = tqdm(
            total=len(names), desc="reading images", unit="image", disable=not (progress and leads), leave=False
        )
        for name in names:
            if len(self.names) == max_images:
                break
            levels = next(read_names)
            shown.update()
            if isinstance(levels, UnreadableImage):
                self.skipped.append({"path": levels.name, "reason": levels.reason})
                if leads:
                    say(f"skipped {levels.name}: {levels.reason}")
                continue
            self.names.append(printable(name))
            self.sources.append(name)
            pixels.update(levels.numpy().tobytes())
            self._crops.keep(name, levels)
        shown.close()
        read_names.close()
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
        kept = self._crops.get(name)
        return from_uint8(self._crop(name) if kept is None else kept)

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

    def stacks(self, batch_size: int) -> Iterator[tuple[range, Float[Tensor, "b 3 r r"]]]:
        """Positions and crops alone, without the next images that only controls read."""
        for start in range(0, len(self), batch_size):
            positions = range(start, min(start + batch_size, len(self)))
            yield positions, torch.stack([self[position] for position in positions])

    def _batch(self, start: int, batch_size: int) -> EvalBatch:
        stop = min(start + batch_size, len(self))
        images = [self[i] for i in range(start, stop)]
        follower = self[stop % len(self)] if len(self) > 1 else self._stranger()
        return EvalBatch(range(start, stop), torch.stack(images), torch.stack([*images[1:], follower]))

    def _stranger(self) -> Float[Tensor, "3 r r"]:
        crops = (from_uint8(_levels(photograph, self.size)) for photograph in sample_photographs().values())
        return next(crop for crop in crops if not torch.equal(crop, self[0]))

    def _crop_or_reason(self, name: str) -> UInt8[Tensor, "3 r r"] | UnreadableImage:
        try:
            return self._crop(name)
        except UnreadableImage as error:
            return error

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
    options |= {"max_images": data.max_images, "num_workers": data.num_workers}
    return EvalImages.open(data.root, data.image_size, data.verify, **options)


def shared_in_order(
    function: Callable[[str], Any], names: Sequence[str], num_workers: int, at_once: int = 16
) -> Iterator[Any]:
    """`in_order`. In a distributed run each process calls `function` for its share of the names and hears the others' results.

    at_once: names per process between two exchanges. All processes must stop at the same name.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:  # reads no further than it is asked for
        yield from in_order(function, names, num_workers)
        return
    own = in_order(function, names[rank::world_size], num_workers)
    try:
        for start in range(0, len(names), world_size * at_once):
            block = range(start, min(start + world_size * at_once, len(names)))
            results = gather_over_ranks([next(own) for _ in block[rank::world_size]])
            for number in block:
                yield results[number % world_size][(number - start) // world_size]
    finally:
        own.close()


def in_order(function: Callable[[str], Any], names: Sequence[str], num_workers: int) -> Iterator[Any]:
    """What `function` makes of each name, in their order, by threads that run a few names ahead."""
    if not num_workers:
        yield from map(function, names)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        waiting = deque(pool.submit(function, name) for name in names[: 2 * num_workers])
        try:
            for name in names[2 * num_workers :]:
                yield waiting.popleft().result()
                waiting.append(pool.submit(function, name))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _levels(image: Image.Image, size: int) -> UInt8[Tensor, "3 r r"]:
    return rearrange(torch.from_numpy(np.array(fit_square(image, size))), "h w c -> c h w").contiguous()
