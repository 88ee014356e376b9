"""Token shards as a PyTorch dataset, and a loader of shuffled batches that resumes exactly."""

import functools
import itertools
import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hybrid_tokenizer.checkpoints.configs import UNREADABLE, from_json
from hybrid_tokenizer.corpus.plan import DATASET_NAME, FORMAT, VERSION
from hybrid_tokenizer.corpus.storage import open_folder
from hybrid_tokenizer.devices import rank_and_world_size
from hybrid_tokenizer.errors import MOST_SIDE, HybridTokenizerError, check_size, check_whole, first_line, shown
from hybrid_tokenizer.tokens import NUM_SEMANTIC_TOKENS, HybridTokens, HybridVocabulary, TokenSource

COLUMNS = ("id", "captions")
"""Read beside the tokens where the caller names no others."""
MOST_ROWS, MOST_GROUPS = 2**40, 2**21
Facts = TypeVar("Facts")


@dataclass
class FileFacts:
    """A file of rows, as dataset.json lists it."""

    name: str
    num_rows: int
    rows_per_group: int

    def __post_init__(self) -> None:
        check_whole("num_rows", self.num_rows, 1, MOST_ROWS)
        check_whole("rows_per_group", self.rows_per_group, 1, MOST_ROWS)
        if ".." in self.name.split("/") or self.name.startswith("/"):
            raise HybridTokenizerError(f"the file {self.name!r} is outside of the folder; tokenize again")

    @property
    def num_groups(self) -> int:
        return -(-self.num_rows // self.rows_per_group)


@dataclass
class TokenizerFacts:
    """What dataset.json says of the tokenizer."""

    name: str
    hash: str
    semantic_codebook_size: int
    guide_codebook_size: int


@dataclass
class ViewFacts:
    """What dataset.json says of the pictures."""

    image_size: int


@dataclass
class OptionFacts:
    """Options of the command that readers need."""

    data: dict


@dataclass
class DatasetFacts:
    """What readers need of dataset.json."""

    num_rows: int
    files: list[dict]
    tokenizer: dict
    grid_shapes: list[list[int]]
    options: dict


def _known(kind: type[Facts], values: Any, source: str) -> Facts:
    """`kind` from those of `values` that it has; raises where one is missing or of another type."""
    if isinstance(values, dict):
        values = {field.name: values[field.name] for field in fields(kind) if field.name in values}  # type: ignore[arg-type]
    return from_json(kind, values, source, complete=True)


class RowGroup(NamedTuple):
    """Rows that lie together in a file, and are read together."""

    file: str
    number: int
    first: int
    """Of its rows, in the dataset."""
    rows: int


class TokenDataset(Dataset):
    """The rows of a folder that `tokenize` filled; `dataset[i]` is a dict of `id`, `captions`, `semantic` and `guide`.

    Only files that dataset.json names are read, so a folder that is still being filled is refused.

    columns: what is read beside the tokens: some of id, captions, width, height, crop, flipped, source.
    cached_groups: row groups of about 1,000 rows (0.8 MB with 372 tokens) that stay in memory.
    """

    def __init__(self, folder: str | os.PathLike[str], columns: Sequence[str] = COLUMNS, cached_groups: int = 128):
        self.folder, self.columns, self.cached_groups = open_folder(folder), tuple(columns), cached_groups
        if not self.folder.exists(DATASET_NAME):
            raise HybridTokenizerError(
                f"{self.folder.path} has no {DATASET_NAME}; give a folder that tokenize has finished, or run it again to finish"
            )
        self.info = self.folder.read_json(DATASET_NAME)
        stored = self.info if isinstance(self.info, dict) else {}
        if stored.get("format") != FORMAT or stored.get("version") != VERSION:
            raise HybridTokenizerError(f"{self.folder.path} was written by another version; tokenize again")
        where = f"{self.folder.path}/{DATASET_NAME}"
        info = _known(DatasetFacts, stored, where)
        tokenizer = _known(TokenizerFacts, info.tokenizer, f"{where}: tokenizer")
        data = _known(OptionFacts, info.options, f"{where}: options").data
        side = check_whole(f"{where}: image_size", _known(ViewFacts, data, f"{where}: data").image_size, 1, MOST_SIDE)
        self.source = TokenSource(tokenizer.name, tokenizer.hash)
        self.image_size = (side, side)
        self.grid_shapes = tuple(check_size(f"{where}: a grid", shape) for shape in info.grid_shapes)
        files = [_known(FileFacts, file, f"{where}: a file") for file in info.files]
        self._widths = {"semantic": NUM_SEMANTIC_TOKENS, "guide": sum(map(math.prod, self.grid_shapes))}
        if (
            sum(file.num_rows for file in files) != info.num_rows
            or sum(file.num_groups for file in files) > MOST_GROUPS
        ):
            raise HybridTokenizerError(
                f"{where} says num_rows {info.num_rows}, and its files do not add up to that; tokenize again"
            )
        self.groups = list(self._list_groups(files))
        self._starts = [group.first for group in self.groups]
        self._open_caches()

    @staticmethod
    def _list_groups(files: Sequence[FileFacts]) -> Iterator[RowGroup]:
        first = 0
        for file in files:
            for number, start in enumerate(range(0, file.num_rows, file.rows_per_group)):
                rows = min(file.rows_per_group, file.num_rows - start)
                yield RowGroup(file.name, number, first, rows)
                first += rows

    def _open_caches(self) -> None:
        self._file = functools.lru_cache(maxsize=64)(self._open_file)
        self._group = functools.lru_cache(maxsize=self.cached_groups)(self.read_group)

    def __getstate__(self) -> dict[str, Any]:  # to spawned workers; open files and caches stay behind
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_group")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open_caches()

    def _open_file(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.folder.open(name))

    def read_group(self, index: int) -> dict[str, Any]:
        """The rows of a group: tokens as arrays, one line per row, everything else as Arrow columns."""
        group = self.groups[index]
        names = [*self._widths, *self.columns]
        with self._readable(group):
            # no threads: a forked worker must not wait for those of its parent
            table = self._file(group.file).read_row_group(group.number, columns=names, use_threads=False)
            if table.num_rows != group.rows:
                raise ValueError(f"{table.num_rows} rows in group {group.number}, expected {group.rows}")
            read: dict[str, Any] = {name: table.column(name) for name in self.columns}
            for name, width in self._widths.items():
                flat = table.column(name).combine_chunks().flatten().to_numpy()
                read[name] = flat.astype(np.int64).reshape(table.num_rows, width)
        return read

    @contextmanager
    def _readable(self, group: RowGroup) -> Iterator[None]:
        """Turn what pyarrow raises for a damaged file into one line."""
        try:
            yield
        except UNREADABLE as error:
            raise HybridTokenizerError(
                f"{self.folder.path}/{group.file} is damaged or incomplete ({shown(first_line(error), 200)}); tokenize again"
            ) from None

    def __len__(self) -> int:
        return self.info["num_rows"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index = index % len(self)
        place = bisect_right(self._starts, index) - 1
        group, row = self._group(place), index - self._starts[place]
        with self._readable(self.groups[place]):
            facts = {name: group[name][row].as_py() for name in self.columns}
        return facts | {name: torch.from_numpy(group[name][row]) for name in ("semantic", "guide")}

    def spread(self, count: int) -> list[int]:
        """Numbers of at most `count` rows at even distances."""
        count = min(count, len(self))
        return [number * len(self) // count for number in range(count)]

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[dict[str, Any]]:
        """Some rows, in batches."""
        for first in range(0, len(rows), batch_size):
            yield self.batch([self[row] for row in rows[first : first + batch_size]])

    def batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Rows as one dict: tokens stacked, everything else a list. The `collate_fn` of a DataLoader."""
        stacked = {name: torch.stack([row[name] for row in rows]) for name in ("semantic", "guide")}
        return {name: [row[name] for row in rows] for name in self.columns} | stacked

    def to_hybrid_tokens(self, batch: dict[str, Any]) -> HybridTokens:
        """The tokens of a batch, with their grids and the tokenizer that made them."""
        sizes = [height * width for height, width in self.grid_shapes]
        grids = batch["guide"].split(sizes, dim=1)
        return HybridTokens(
            semantic_indices=batch["semantic"],
            guide_indices=tuple(grid.unflatten(1, shape) for grid, shape in zip(grids, self.grid_shapes, strict=True)),
            image_size=self.image_size,
            source=self.source,
        )

    def to_token_ids(self, batch: dict[str, Any], vocabulary: HybridVocabulary) -> Int[Tensor, "b n"]:
        """`<img> semantic(32) guide(n) </img>` of each row, as ids of a language model."""
        return vocabulary.to_token_ids(self.to_hybrid_tokens(batch))

    def vocabulary(self, text_vocab_size: int = 0) -> HybridVocabulary:
        """Where the codes of this dataset sit after `text_vocab_size` text ids. No model is loaded."""
        return HybridVocabulary(
            semantic_codebook_size=self.info["tokenizer"]["semantic_codebook_size"],
            guide_codebook_size=self.info["tokenizer"]["guide_codebook_size"],
            grid_shapes=self.grid_shapes,
            image_size=self.image_size,
            text_vocab_size=text_vocab_size,
            source=self.source,
        )


class TokenLoader:
    """Batches of one rank, shuffled anew in each epoch. Iterating gives what is left of the epoch, then begins the next.

    Row groups are dealt to the ranks, and those of a rank to its workers, so each is read once an epoch. Rows are mixed within
    `mixed_groups` row groups of a worker. All ranks together give each row once an epoch.

    num_workers: processes that read; 0 reads in this one.
    drop_last: only whole batches, and as many of them on every rank, as gradient averaging needs.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int = 0,
        mixed_groups: int = 32,
        drop_last: bool = False,
    ):
        own_rank, own_world_size = rank_and_world_size()
        self.rank = own_rank if rank is None else rank
        self.world_size = own_world_size if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise HybridTokenizerError(f"rank={self.rank} must lie in 0..{self.world_size - 1}, the world's ranks")
        if batch_size < 1 or num_workers < 0 or mixed_groups < 1:
            raise HybridTokenizerError(
                f"batch_size={batch_size}, mixed_groups={mixed_groups} must be at least 1 and num_workers={num_workers} at least 0"
            )
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.num_workers, self.mixed_groups, self.drop_last = num_workers, mixed_groups, drop_last
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        if not self.drop_last:
            return sum(math.ceil(self._rows(stream) / self.batch_size) for stream in self._streams(self.rank))
        ranks = [self._streams(rank) for rank in range(self.world_size)]
        return min(sum(self._rows(stream) // self.batch_size for stream in rank) for rank in ranks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=itertools.islice(self._batches(), self.position, len(self)),
            collate_fn=self.dataset.batch,
            num_workers=self.num_workers,
        )
        for batch in loader:
            self.position += 1
            yield batch
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int | bool]:
        """Where the loader stands: after the last batch that was given out."""
        return {**self._fixed(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Go on from there. Raises when another setting would give other batches."""
        fixed = self._fixed()
        changed = [f"{name}={state.get(name)}, not {fixed[name]}" for name in fixed if state.get(name) != fixed[name]]
        if changed:
            raise HybridTokenizerError(
                f"the loader's state is of {', '.join(changed)}; use the same settings to resume"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _fixed(self) -> dict[str, int | bool]:
        names = ("batch_size", "seed", "shuffle", "rank", "world_size", "num_workers", "mixed_groups", "drop_last")
        return {name: getattr(self, name) for name in names} | {"num_rows": len(self.dataset)}

    def _streams(self, rank: int) -> list[list[int]]:
        """Row groups of each worker of a rank, in the order of this epoch."""
        order = np.arange(len(self.dataset.groups))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        mine = order[rank :: self.world_size].tolist()
        workers = max(1, self.num_workers)
        return [mine[worker::workers] for worker in range(workers)]

    def _rows(self, groups: Sequence[int]) -> int:
        return sum(self.dataset.groups[group].rows for group in groups)

    def _batches(self) -> Iterator[list[int]]:
        """The row numbers of each batch of the epoch: one batch of each worker's stream in turn."""
        streams = [self._row_numbers(stream) for stream in self._streams(self.rank)]
        while streams:
            for stream in list(streams):
                batch = list(itertools.islice(stream, self.batch_size))
                if len(batch) < (self.batch_size if self.drop_last else 1):
                    streams.remove(stream)
                else:
                    yield batch

    def _row_numbers(self, groups: Sequence[int]) -> Iterator[int]:
        """Of some row groups, mixed among as many of them as are read together."""
        for first in range(0, len(groups), self.mixed_groups):
            mixed = groups[first : first + self.mixed_groups]
            held = [self.dataset.groups[group] for group in mixed]
            rows = np.concatenate([np.arange(group.first, group.first + group.rows) for group in held])
            if self.shuffle:
                rows = np.random.default_rng((self.seed, self.epoch, mixed[0])).permutation(rows)
            yield from rows.tolist()
