"""Keeps what is computed once for each training crop: safetensors shards that all processes write and read as memory maps."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import is_finite, save_tensors
from hybrid_tokenizer.data import UnreadableImage
from hybrid_tokenizer.data.config import CropConfig, Verify
from hybrid_tokenizer.data.items import Item, item_captions, item_stamp, open_item
from hybrid_tokenizer.data.training import one_thread, random_crop
from hybrid_tokenizer.devices import rank_and_world_size
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.images import from_uint8
from hybrid_tokenizer.training.state import writing

ROWS_OF_SHARD = 512
"""Few enough that a process holds one shard in memory, and enough that 2.5 million rows are 5,000 files."""
VALUES, KEPT, KEY = "values", "kept", "key"
SECONDS_BETWEEN_LOOKS = 0.2
CPU_CROPS, GPU_PIXELS = 16, 64 * 256 * 256


class CropSource(NamedTuple):
    """The crops of a data set, the same for every process and every start."""

    items: Sequence[Item]
    crop: CropConfig
    views: int
    """Crops of each item."""
    seed: int
    verify: Verify = "full"

    def read(self, number: int) -> UInt8[Tensor, "v 3 s s"]:
        """The crops of one item. Raises UnreadableImage."""
        item = self.items[number]
        image = open_item(item, self.verify)
        item_captions(item)  # raises where a shard has none for it
        crops = (
            random_crop(image, self.crop, np.random.default_rng((self.seed, 2, number, view)))
            for view in range(self.views)
        )
        return torch.stack([torch.from_numpy(np.array(crop)).permute(2, 0, 1) for crop in crops])


class Kind(NamedTuple):
    """One thing to compute from crops."""

    name: str
    facts: list[Any]
    """Everything but the crops that the result depends on. Other facts make it anew."""
    encode: Callable[[Float[Tensor, "b 3 s s"], int], Tensor]
    """A batch of crops, and the number of the first item in it."""


class CachedRows:
    """The rows of all shards of one kind, by number. Only pages of rows that are asked for are read."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        """counts: rows of each shard."""
        self.paths, self.ends = list(paths), np.cumsum(counts)
        self._mapped: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, row: int) -> Tensor:
        shard = int(np.searchsorted(self.ends, row, side="right"))
        return self.shard(shard)[row - int(self.ends[shard])]  # counted from the shard's end

    def shard(self, number: int) -> Tensor:
        """All rows of a shard."""
        if number not in self._mapped:
            with safe_open(self.paths[number], "pt") as file:
                self._mapped[number] = file.get_tensor(VALUES)  # maps the file, reads nothing
        return self._mapped[number]

    def __getstate__(self) -> dict[str, Any]:  # maps cannot be pickled to spawned workers
        return self.__dict__ | {"_mapped": {}}


class _Readings(Dataset):
    """The crops of an item by its number, or what is wrong with it."""

    def __init__(self, source: CropSource):
        self.source = source

    def __getitem__(self, number: int) -> tuple[int, Tensor | UnreadableImage]:
        try:
            return number, self.source.read(number)
        except UnreadableImage as error:
            return number, error


def cached_rows(
    folder: Path, source: CropSource, kinds: Sequence[Kind], device: torch.device, num_workers: int = 0
) -> tuple[np.ndarray, dict[str, CachedRows]]:
    """Compute what `folder` does not hold yet, and give it all: `views` rows for each readable item, in the items' order.

    Each process of a run computes every n-th shard and then waits for those of the others. A shard is written whole or not at
    all and names what it was computed from, so that a killed run goes on with the next shard and a second run has nothing
    to do. All kinds that a shard lacks are computed from one reading of its images.

    Args:
        folder: one folder for each kind, shared by all processes.
        device: where the encoders are; decides how many crops they take at once.
        num_workers: loader processes.

    Returns:
        The numbers of the readable items, and the rows of each kind by its name.

    Raises:
        HybridTokenizerError: no image can be read, a value is not finite, or kinds were computed from different images.
    """
    per_shard = max(1, ROWS_OF_SHARD // source.views)
    count = len(source.items)
    shards = [range(start, min(start + per_shard, count)) for start in range(0, count, per_shard)]
    files: dict[str, list[ShardFile]] = {kind.name: [] for kind in kinds}
    for number, shard in enumerate(shards):
        crops = facts_of(source, shard)
        for kind in kinds:
            path = folder / kind.name / f"{number:05d}.safetensors"
            files[kind.name].append(ShardFile(path, hash_of([crops, kind.facts])))
    rank, processes = rank_and_world_size()
    missing = {
        number: lacking
        for number in range(rank, len(shards), processes)
        if (lacking := [kind for kind in kinds if not files[kind.name][number].is_current()])
    }
    if missing:
        fill(source, shards, missing, files, device, num_workers)
    wait_for([file for of_kind in files.values() for file in of_kind])
    return gather(folder, files, source.views)


def facts_of(source: CropSource, shard: range) -> list[Any]:
    """What the crops of a shard follow from: its place, the images' names, sizes and times, and the options."""
    crop = source.crop
    options = [crop.size, *crop.scale, crop.flip, source.views, source.seed]
    return [shard.start, hash_of([item_stamp(source.items[number]) for number in shard]), options]


class ShardFile(NamedTuple):
    """Where a shard of one kind belongs, and the hash of what it must have been computed from."""

    path: Path
    key: str

    def is_current(self) -> bool:
        """Whether it is there, whole, and of the right key."""
        try:
            with safe_open(self.path, "np") as file:
                return (file.metadata() or {}).get(KEY) == self.key
        except (OSError, SafetensorError):
            return False

    def write(self, values: list[Tensor], kept: list[int]) -> None:
        """Write it atomically."""
        tensors = {KEPT: torch.tensor(kept, dtype=torch.int64)} | ({VALUES: torch.cat(values)} if values else {})
        if not all(map(is_finite, tensors.values())):
            raise HybridTokenizerError(
                f"{self.path.parent.name} computed from the training images are not finite in fp16; the weights are damaged or "
                "their values too large: give other weights"
            )
        with writing(self.path.parent):
            save_tensors(self.path, tensors, {KEY: self.key})

    def kept(self) -> np.ndarray:
        """The numbers of the items whose rows it holds."""
        with safe_open(self.path, "np") as file:
            return file.get_tensor(KEPT)


def hash_of(facts: list[Any]) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def crops_at_once(device: torch.device, size: int) -> int:
    """How many crops the encoders take at once: on a GPU as many as hold the pixels of 64 crops of 256 px."""
    return CPU_CROPS if device.type == "cpu" else max(1, GPU_PIXELS // size**2)


@torch.no_grad()
def fill(
    source: CropSource,
    shards: Sequence[range],
    missing: dict[int, list[Kind]],
    files: dict[str, list[ShardFile]],
    device: torch.device,
    num_workers: int,
) -> None:
    """Compute and write the missing shards. Unreadable images are reported and left out.

    No batch reaches into a second shard, so that a shard is the same whichever process computes it.

    missing: by the shard's number, the kinds that it lacks.
    """
    batch_size = max(1, crops_at_once(device, source.crop.size) // source.views)
    batches = [
        (number, shards[number][start : start + batch_size])
        for number in missing
        for start in range(0, len(shards[number]), batch_size)
    ]
    loader = DataLoader(
        _Readings(source),
        batch_sampler=[list(numbers) for _, numbers in batches],
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=one_thread,
    )
    names = dict.fromkeys(kind.name.replace("_", " ") for kinds in missing.values() for kind in kinds)
    total = sum(len(shards[number]) for number in missing)
    others = rank_and_world_size()[0] > 0  # about as far
    with tqdm(total=total, desc=", ".join(names), unit="image", disable=others) as bar:
        values: dict[str, list[Tensor]] = {}
        kept: list[int] = []
        for (number, numbers), samples in zip(batches, loader, strict=True):
            read = list(readable(samples))
            kept += [item for item, _ in read]
            if read:
                images = from_uint8(torch.cat([crops for _, crops in read]).to(device))
                for kind in missing[number]:
                    values.setdefault(kind.name, []).append(kind.encode(images, numbers.start).cpu())
            bar.update(len(samples))
            if numbers.stop == shards[number].stop:
                for kind in missing[number]:
                    files[kind.name][number].write(values.get(kind.name, []), kept)
                values, kept = {}, []


def readable(samples: Sequence[tuple[int, Tensor | UnreadableImage]]) -> Iterator[tuple[int, Tensor]]:
    """Those that could be read; the others are reported."""
    for number, crops in samples:
        if isinstance(crops, UnreadableImage):
            tqdm.write(f"skipped {crops.name}: {crops.reason}")
        else:
            yield number, crops


def wait_for(files: Sequence[ShardFile]) -> None:
    """Return once all are there. The processes need not be as fast as one another, and a collective would time out."""
    said = rank_and_world_size()[0] > 0
    for file in files:
        while not file.is_current():
            if not said:
                tqdm.write("waiting for the cache shards of the other processes")
                said = True
            time.sleep(SECONDS_BETWEEN_LOOKS)


def gather(folder: Path, files: dict[str, list[ShardFile]], views: int) -> tuple[np.ndarray, dict[str, CachedRows]]:
    """What `cached_rows` returns, of shards that are all there."""
    kept: list[np.ndarray] = []
    rows = {}
    for name, of_kind in files.items():
        kept_too = [file.kept() for file in of_kind]
        kept = kept or kept_too
        if not all(map(np.array_equal, kept, kept_too)):
            raise HybridTokenizerError(
                f"the files in {folder} are of different images, because some images could not be read for one of them; "
                "delete the folder and run again"
            )
        rows[name] = CachedRows([file.path for file in of_kind], [views * len(numbers) for numbers in kept_too])
    numbers = np.concatenate(kept)
    if not len(numbers):
        raise HybridTokenizerError("no training image can be read; give a data.root with images")
    return numbers, rows
