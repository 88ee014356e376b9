"""What an image becomes: 32 semantic indices and one or more guide grids, in memory, in a file, as ids of an LLM."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybrid_tokenizer.checkpoints.files import save_tensors
from hybrid_tokenizer.errors import HybridTokenizerError

NUM_SEMANTIC_TOKENS = 32
FILE_FORMAT = "hybrid_tokens"
FILE_VERSION = "1"


class TokenSource(NamedTuple):
    """The tokenizer that indices belong to: its name for people, the hash of its weights for the comparison."""

    name: str
    hash: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.hash[:12]})"


@dataclass(frozen=True, eq=False)
class HybridTokens:
    """Tokens of a batch of images of one size.

    `guide_indices` runs coarse to fine; a single-size guide is a tuple of one grid. Indices are codebook positions from
    0, kept as int64. `image_size` is (height, width) of the images. `source` names the tokenizer; tokens without one
    (built by hand) are decoded by anybody whose codebooks hold them. Equality compares indices and image size, not the
    source.
    """

    semantic_indices: Int[Tensor, "b 32"]
    guide_indices: tuple[Int[Tensor, "b _ _"], ...]
    image_size: tuple[int, int]
    source: TokenSource | None = None

    def __post_init__(self) -> None:
        grids = tuple(self.guide_indices)
        _check_indices("semantic_indices", self.semantic_indices, 2)
        if self.semantic_indices.shape[1] != NUM_SEMANTIC_TOKENS:
            raise HybridTokenizerError(
                f"semantic_indices has {self.semantic_indices.shape[1]} tokens an image, expected "
                f"{NUM_SEMANTIC_TOKENS}; pass the whole output of SemanticTokenizer.encode"
            )
        if not grids:
            raise HybridTokenizerError("guide_indices is empty, expected at least one grid (b, h, w), coarse to fine")
        for i, grid in enumerate(grids):
            _check_indices(f"guide_indices[{i}]", grid, 3)
            if grid.shape[0] != self.semantic_indices.shape[0]:
                raise HybridTokenizerError(
                    f"guide_indices[{i}] holds {grid.shape[0]} images and semantic_indices "
                    f"{self.semantic_indices.shape[0]}; they must be of the same batch"
                )
        areas = [grid.shape[1] * grid.shape[2] for grid in grids]
        if areas != sorted(areas):
            raise HybridTokenizerError(f"guide grids have {areas} tokens, expected coarse to fine; reverse the tuple")
        height, width = self.image_size
        if height < 1 or width < 1:
            raise HybridTokenizerError(
                f"image_size={self.image_size} must be (height, width) in pixels, both at least 1"
            )
        # One dtype, so that tokens of a file (int32) equal those of memory and index any embedding.
        object.__setattr__(self, "semantic_indices", self.semantic_indices.long())
        object.__setattr__(self, "guide_indices", tuple(grid.long() for grid in grids))
        object.__setattr__(self, "image_size", (int(height), int(width)))

    def __len__(self) -> int:
        return self.semantic_indices.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Int[Tensor, "k"] | Bool[Tensor, "b"]) -> "HybridTokens":
        """Images by position; the batch axis stays, so `tokens[0]` is a batch of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"image {index} of a batch of {len(self)}")  # also what ends a for loop
            index = slice(index, index + 1) if index >= 0 else slice(len(self) + index, len(self) + index + 1)
        return replace(
            self,
            semantic_indices=self.semantic_indices[index],
            guide_indices=tuple(grid[index] for grid in self.guide_indices),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HybridTokens):
            return NotImplemented
        return (
            self.image_size == other.image_size
            and self.grid_shapes == other.grid_shapes
            and torch.equal(self.semantic_indices.cpu(), other.semantic_indices.cpu())
            and all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(self.guide_indices, other.guide_indices, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # tensors are mutable

    @classmethod
    def cat(cls, parts: Sequence["HybridTokens"]) -> "HybridTokens":
        """The images of several batches as one. Sizes, grids and source must agree."""
        if not parts:
            raise HybridTokenizerError("there are no tokens to concatenate; pass at least one HybridTokens")
        first = parts[0]
        for other in parts[1:]:
            for what in ("image_size", "grid_shapes", "source"):
                if getattr(other, what) != getattr(first, what):
                    raise HybridTokenizerError(
                        f"can not concatenate tokens of {what} {getattr(first, what)} and {getattr(other, what)}; "
                        "keep them in separate batches"
                    )
        return replace(
            first,
            semantic_indices=torch.cat([part.semantic_indices for part in parts]),
            guide_indices=tuple(
                torch.cat(grids) for grids in zip(*(part.guide_indices for part in parts), strict=True)
            ),
        )

    def to(self, device: torch.device | str) -> "HybridTokens":
        """The same tokens on another device."""
        return replace(
            self,
            semantic_indices=self.semantic_indices.to(device),
            guide_indices=tuple(grid.to(device) for grid in self.guide_indices),
        )

    @property
    def device(self) -> torch.device:
        """Where the indices live."""
        return self.semantic_indices.device

    @property
    def grid_shapes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of each guide grid, coarse to fine."""
        return tuple((grid.shape[1], grid.shape[2]) for grid in self.guide_indices)

    @property
    def num_guide_tokens(self) -> int:
        """Guide tokens an image, all grids together."""
        return sum(h * w for h, w in self.grid_shapes)

    @property
    def num_tokens(self) -> int:
        """Tokens an image: 32 semantic ones and the guide's."""
        return NUM_SEMANTIC_TOKENS + self.num_guide_tokens

    def bits(self, semantic_codebook_size: int, guide_codebook_size: int) -> float:
        """Bits an image under a uniform code: every token costs log2 of its codebook's size."""
        return NUM_SEMANTIC_TOKENS * math.log2(semantic_codebook_size) + self.num_guide_tokens * math.log2(
            guide_codebook_size
        )

    def check_codebooks(self, semantic_codebook_size: int, guide_codebook_size: int) -> None:
        """Raise when an index lies outside its codebook."""
        _check_codes("semantic_indices", self.semantic_indices, semantic_codebook_size)
        for i, grid in enumerate(self.guide_indices):
            _check_codes(f"guide_indices[{i}]", grid, guide_codebook_size)

    def to_token_ids(self, vocabulary: "HybridVocabulary") -> Int[Tensor, "b n"]:
        """One LLM sequence an image, `<img> semantic(32) guide(n) </img>`; see HybridVocabulary."""
        return vocabulary.to_token_ids(self)

    @classmethod
    def from_token_ids(cls, token_ids: Int[Tensor, "b n"], vocabulary: "HybridVocabulary") -> "HybridTokens":
        """The exact inverse of `to_token_ids`."""
        return vocabulary.from_token_ids(token_ids)

    def save(self, path: str | Path) -> None:
        """To one safetensors file, atomically, with the tokenizer's name and hash in its metadata."""
        tensors = {f"guide_indices.{i}": grid.int() for i, grid in enumerate(self.guide_indices)}
        metadata = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "image_height": str(self.image_size[0]),
            "image_width": str(self.image_size[1]),
        }
        if self.source is not None:
            metadata |= {"tokenizer": self.source.name, "tokenizer_hash": self.source.hash}
        save_tensors(Path(path), {"semantic_indices": self.semantic_indices.int(), **tensors}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "HybridTokens":
        """From a file that `save` wrote, on the CPU."""
        path = Path(path)
        if not path.is_file():
            raise HybridTokenizerError(f"token file {path} does not exist; write one with HybridTokens.save")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise HybridTokenizerError(
                f"token file {path} is damaged or incomplete ({error}); write it again"
            ) from None
        if metadata.get("format") != FILE_FORMAT or metadata.get("version") != FILE_VERSION:
            raise HybridTokenizerError(
                f"{path} says format {metadata.get('format')!r} version {metadata.get('version')!r}, expected "
                f"{FILE_FORMAT!r} {FILE_VERSION!r}; give a file that HybridTokens.save of this version wrote"
            )
        grids = [tensors.get(f"guide_indices.{i}") for i in range(len(tensors) - 1)]
        needed = ("image_height", "image_width")
        if "semantic_indices" not in tensors or None in grids or not all(key in metadata for key in needed):
            raise HybridTokenizerError(f"token file {path} lacks tensors or its image size; write it again")
        source = TokenSource(metadata["tokenizer"], metadata["tokenizer_hash"]) if "tokenizer" in metadata else None
        return cls(
            semantic_indices=tensors["semantic_indices"],
            guide_indices=tuple(grid for grid in grids if grid is not None),
            image_size=(int(metadata["image_height"]), int(metadata["image_width"])),
            source=source,
        )


@dataclass(frozen=True)
class HybridVocabulary:
    """Where a tokenizer's codes sit in the vocabulary of a language model.

    Text ids 0..text_vocab_size-1 stay as they are; then come `<img>`, `</img>`, the semantic codes and the guide codes.
    An image is the sequence `<img> semantic(32) guide(n) </img>`, semantic first, grids coarse to fine, each in raster
    order. A sequence may hold the first grids only (a nested guide's prefix): its length tells how many. `grid_shapes`
    and `image_size` say which images the sequences stand for, since ids alone do not.
    """

    semantic_codebook_size: int
    guide_codebook_size: int
    grid_shapes: tuple[tuple[int, int], ...]
    image_size: tuple[int, int]
    text_vocab_size: int = 0
    source: TokenSource | None = None

    def __post_init__(self) -> None:
        if self.semantic_codebook_size < 1 or self.guide_codebook_size < 1:
            raise HybridTokenizerError(
                f"codebook sizes {self.semantic_codebook_size} (semantic) and {self.guide_codebook_size} (guide) "
                "must be at least 1"
            )
        if self.text_vocab_size < 0:
            raise HybridTokenizerError(
                f"text_vocab_size={self.text_vocab_size} must be 0 or more: the number of text ids to keep"
            )
        if not self.grid_shapes or min(min(shape) for shape in self.grid_shapes) < 1:
            raise HybridTokenizerError(
                f"grid_shapes={self.grid_shapes} must hold (h, w) of every guide grid, all at least 1"
            )

    @property
    def begin_id(self) -> int:
        """The id of `<img>`."""
        return self.text_vocab_size

    @property
    def end_id(self) -> int:
        """The id of `</img>`."""
        return self.text_vocab_size + 1

    @property
    def semantic_offset(self) -> int:
        """The id of semantic code 0."""
        return self.text_vocab_size + 2

    @property
    def guide_offset(self) -> int:
        """The id of guide code 0; all grids share one codebook."""
        return self.semantic_offset + self.semantic_codebook_size

    @property
    def size(self) -> int:
        """Rows that the language model's embedding needs: text, both boundaries, both codebooks."""
        return self.guide_offset + self.guide_codebook_size

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Ids an image with the first 1, 2, ... grids; the last is the whole image."""
        guide = itertools.accumulate(h * w for h, w in self.grid_shapes)
        return tuple(2 + NUM_SEMANTIC_TOKENS + n for n in guide)

    def to_token_ids(self, tokens: HybridTokens) -> Int[Tensor, "b n"]:
        """Indices to ids. The tokens' grids must be this vocabulary's, or its first few."""
        if tokens.grid_shapes != self.grid_shapes[: len(tokens.grid_shapes)]:
            raise HybridTokenizerError(
                f"tokens have guide grids {tokens.grid_shapes}, this vocabulary is for {self.grid_shapes}; "
                "build one for this image size with tokenizer.vocabulary(text_vocab_size, image_size=...)"
            )
        if tokens.image_size != self.image_size:
            raise HybridTokenizerError(
                f"tokens are of {tokens.image_size} images, this vocabulary is for {self.image_size}; "
                "build one for this image size with tokenizer.vocabulary(text_vocab_size, image_size=...)"
            )
        check_source(tokens.source, self.source)
        tokens.check_codebooks(self.semantic_codebook_size, self.guide_codebook_size)
        boundary = tokens.semantic_indices.new_full((len(tokens), 1), self.begin_id)
        guide = [grid.flatten(1) + self.guide_offset for grid in tokens.guide_indices]
        return torch.cat([boundary, tokens.semantic_indices + self.semantic_offset, *guide, boundary + 1], dim=1)

    def from_token_ids(self, token_ids: Int[Tensor, "b n"]) -> HybridTokens:
        """Ids to indices, exactly. A wrong length, a missing boundary or a misplaced id raises with its position."""
        if token_ids.ndim != 2:
            raise HybridTokenizerError(
                f"token_ids has shape {tuple(token_ids.shape)}, expected (images, ids); add a batch axis"
            )
        token_ids = token_ids.long()
        if token_ids.shape[1] not in self.sequence_lengths:
            raise HybridTokenizerError(
                f"a sequence has {token_ids.shape[1]} ids, expected {' or '.join(map(str, self.sequence_lengths))} "
                f"(<img>, {NUM_SEMANTIC_TOKENS} semantic, guide, </img>); cut each image from <img> to </img>"
            )
        num_grids = self.sequence_lengths.index(token_ids.shape[1]) + 1
        self._check_ids(token_ids[:, :1], "<img>", self.begin_id, self.begin_id + 1, 0)
        self._check_ids(token_ids[:, -1:], "</img>", self.end_id, self.end_id + 1, token_ids.shape[1] - 1)
        semantic_ids, guide_ids = token_ids[:, 1:-1].split(
            [NUM_SEMANTIC_TOKENS, token_ids.shape[1] - 2 - NUM_SEMANTIC_TOKENS], 1
        )
        self._check_ids(semantic_ids, "a semantic code", self.semantic_offset, self.guide_offset, 1)
        self._check_ids(guide_ids, "a guide code", self.guide_offset, self.size, 1 + NUM_SEMANTIC_TOKENS)
        shapes = self.grid_shapes[:num_grids]
        grids = (guide_ids - self.guide_offset).split([h * w for h, w in shapes], dim=1)
        return HybridTokens(
            semantic_indices=semantic_ids - self.semantic_offset,
            guide_indices=tuple(grid.unflatten(1, shape) for grid, shape in zip(grids, shapes, strict=True)),
            image_size=self.image_size,
            source=self.source,
        )

    @staticmethod
    def _check_ids(token_ids: Int[Tensor, "b n"], what: str, low: int, high: int, start: int) -> None:
        wrong = ((token_ids < low) | (token_ids >= high)).nonzero()
        if len(wrong):
            image, position = wrong[0].tolist()
            allowed = str(low) if high == low + 1 else f"{low}..{high - 1}"
            raise HybridTokenizerError(
                f"id {token_ids[image, position].item()} at position {start + position} of sequence {image} is not "
                f"{what} (expected {allowed}); check text_vocab_size, and constrain the model's sampling there"
            )


def check_source(tokens_source: TokenSource | None, reader_source: TokenSource | None) -> None:
    """Raise when both sides name a tokenizer and the hashes differ."""
    if tokens_source is not None and reader_source is not None and tokens_source.hash != reader_source.hash:
        raise HybridTokenizerError(
            f"these tokens were made by tokenizer {tokens_source}, not by {reader_source}; "
            "load the tokenizer that made them, or encode the images again"
        )


def _check_indices(name: str, indices: Tensor, ndim: int) -> None:
    if indices.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8) or indices.ndim != ndim:
        layout = "(b, 32)" if ndim == 2 else "(b, h, w)"
        raise HybridTokenizerError(
            f"{name} is {indices.dtype} of shape {tuple(indices.shape)}, expected integers of shape {layout}"
        )


def _check_codes(name: str, indices: Tensor, codebook_size: int) -> None:
    if indices.numel() == 0:
        return
    low, high = indices.aminmax()
    if low < 0 or high >= codebook_size:
        raise HybridTokenizerError(
            f"{name} spans {low.item()} to {high.item()}, expected 0 to {codebook_size - 1}; "
            "these indices belong to another codebook"
        )
