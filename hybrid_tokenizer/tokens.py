"""The tokens of images: 32 semantic indices and one or more guide grids, in memory, in a file, and as ids of a language model."""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hybrid_tokenizer.checkpoints.configs import UNREADABLE
from hybrid_tokenizer.checkpoints.files import save_tensors
from hybrid_tokenizer.errors import HybridTokenizerError, check_size, check_whole, first_line, shown

NUM_SEMANTIC_TOKENS = 32
FILE_FORMAT = "hybrid_tokens"
FILE_VERSION, FIRST_VERSION = "2", "1"
HASH_PREFIX = "v2:"
"""Prefix of hashes that cover weights and configuration. Hashes without it, in files of version 1, cover weights and
four settings."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)
MOST_IDS = 2**31
"""Largest size of a language model's vocabulary."""


class TokenSource(NamedTuple):
    """The tokenizer that indices belong to: a name to display and a hash to compare."""

    name: str
    hash: str

    @property
    def digest(self) -> str:
        """The first digits of the hash, without its version."""
        return self.hash.removeprefix(HASH_PREFIX)[:12]

    def __str__(self) -> str:
        return f"{self.name!r} ({self.digest})"


@dataclass(frozen=True, eq=False, repr=False)
class HybridTokens:
    """Tokens of a batch of images of one size. Equality compares indices and image size, not the source.

    Args:
        semantic_indices: of shape (b, 32), positions in the semantic codebook from 0. Kept as int64.
        guide_indices: grids of shape (b, h, w), coarse to fine, positions in the guide codebook from 0. A guide of one
            size is a tuple of one grid. Kept as int64.
        image_size: (height, width) of the images.
        source: the tokenizer that made them. Tokens without one (built by hand) are decoded by every tokenizer whose
            codebooks hold them.

    Raises:
        HybridTokenizerError: shapes, dtypes or sizes that do not go together.

    Examples:
        >>> tokens = tokenizer.encode(["cat.jpg", "dog.jpg"])
        >>> tokens.save("pets.safetensors")
        >>> HybridTokens.load("pets.safetensors")[0]
        HybridTokens(1 image of 256x256: 32 semantic + 4 + 16 + 64 + 256 guide tokens, made by 'tiny' (0123456789ab))
    """

    semantic_indices: Int[Tensor, "b 32"]
    guide_indices: tuple[Int[Tensor, "b _ _"], ...]
    image_size: tuple[int, int]
    source: TokenSource | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.guide_indices, (tuple, list)):
            raise HybridTokenizerError(
                f"guide_indices is a {type(self.guide_indices).__name__}, expected a tuple of grids (b, h, w), coarse to fine"
            )
        grids = tuple(self.guide_indices)
        _check_indices("semantic_indices", self.semantic_indices, 2)
        if self.semantic_indices.shape[1] != NUM_SEMANTIC_TOKENS:
            raise HybridTokenizerError(
                f"semantic_indices has {self.semantic_indices.shape[1]} tokens per image, expected "
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
        if not all(areas):
            raise HybridTokenizerError(
                f"guide grids have {areas} tokens, expected at least 1 each; leave empty grids out"
            )
        if areas != sorted(areas):
            raise HybridTokenizerError(f"guide grids have {areas} tokens, expected coarse to fine; reverse the tuple")
        image_size = check_size("image_size", self.image_size)
        # One dtype, so that tokens of a file (int32) equal those of memory and index any embedding.
        object.__setattr__(self, "semantic_indices", self.semantic_indices.long())
        object.__setattr__(self, "guide_indices", tuple(grid.long() for grid in grids))
        object.__setattr__(self, "image_size", image_size)

    def __repr__(self) -> str:
        height, width = self.image_size
        images = f"{len(self)} image{'' if len(self) == 1 else 's'} of {height}x{width}"
        guide = " + ".join(str(h * w) for h, w in self.grid_shapes)
        made = "" if self.source is None else f", made by {self.source}"
        return f"HybridTokens({images}: {NUM_SEMANTIC_TOKENS} semantic + {guide} guide tokens{made})"

    def __len__(self) -> int:
        return self.semantic_indices.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Int[Tensor, "k"] | Bool[Tensor, "b"]) -> "HybridTokens":
        """Images by position; the batch axis stays, so `tokens[0]` is a batch of one."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"image {index} of a batch of {len(self)}")  # also ends a for loop
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
        """Concatenate several batches.

        Raises:
            HybridTokenizerError: no batch, or batches of several image sizes, grids or tokenizers.
        """
        if not parts or not all(isinstance(part, HybridTokens) for part in parts):
            raise HybridTokenizerError(f"parts is {shown(parts)}, expected a list of at least one HybridTokens")
        first = parts[0]
        for other in parts[1:]:
            for what in ("image_size", "grid_shapes", "source"):
                if getattr(other, what) != getattr(first, what):
                    raise HybridTokenizerError(
                        f"cannot concatenate tokens of {what} {getattr(first, what)} and {getattr(other, what)}; "
                        "keep them in separate batches"
                    )
        return replace(
            first,
            semantic_indices=torch.cat([part.semantic_indices for part in parts]),
            guide_indices=tuple(
                torch.cat(grids) for grids in zip(*(part.guide_indices for part in parts), strict=True)
            ),
        )

    @classmethod
    def mix(cls, *, semantic_of: "HybridTokens", guide_of: "HybridTokens") -> "HybridTokens":
        """The semantic tokens of one batch with the guide of another, image by image.

        Args:
            semantic_of: gives the semantic indices.
            guide_of: gives the guide indices and the image size.

        Returns:
            As many images as each of the two has.

        Raises:
            HybridTokenizerError: batches of different lengths, or of different tokenizers.

        Examples:
            >>> tokenizer.decode(HybridTokens.mix(semantic_of=cats, guide_of=dogs))
        """
        if len(semantic_of) != len(guide_of):
            raise HybridTokenizerError(
                f"semantic_of has {len(semantic_of)} images and guide_of {len(guide_of)}; give equally many"
            )
        check_source(semantic_of.source, guide_of.source)
        indices = semantic_of.semantic_indices.to(guide_of.device)
        return replace(guide_of, semantic_indices=indices, source=guide_of.source or semantic_of.source)

    def to(self, device: torch.device | str) -> "HybridTokens":
        """The same tokens on another device."""
        return replace(
            self,
            semantic_indices=self.semantic_indices.to(device),
            guide_indices=tuple(grid.to(device) for grid in self.guide_indices),
        )

    @property
    def device(self) -> torch.device:
        """Device of the indices."""
        return self.semantic_indices.device

    @property
    def grid_shapes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of each guide grid, coarse to fine."""
        return tuple((grid.shape[1], grid.shape[2]) for grid in self.guide_indices)

    @property
    def num_guide_tokens(self) -> int:
        """Guide tokens per image, all grids together."""
        return sum(h * w for h, w in self.grid_shapes)

    @property
    def num_tokens(self) -> int:
        """Tokens per image: 32 semantic ones and the guide's."""
        return NUM_SEMANTIC_TOKENS + self.num_guide_tokens

    def bits(self, semantic_codebook_size: int, guide_codebook_size: int) -> float:
        """Bits per image under a uniform code: every token costs log2 of its codebook's size."""
        return NUM_SEMANTIC_TOKENS * math.log2(semantic_codebook_size) + self.num_guide_tokens * math.log2(
            guide_codebook_size
        )

    def check_codebooks(self, semantic_codebook_size: int, guide_codebook_size: int) -> None:
        """Raise when an index is outside its codebook."""
        _check_codes("semantic_indices", self.semantic_indices, semantic_codebook_size)
        for i, grid in enumerate(self.guide_indices):
            _check_codes(f"guide_indices[{i}]", grid, guide_codebook_size)

    def to_token_ids(self, vocabulary: "HybridVocabulary") -> Int[Tensor, "b n"]:
        """One LLM sequence per image, `<img> semantic(32) guide(n) </img>`; see HybridVocabulary."""
        return vocabulary.to_token_ids(self)

    @classmethod
    def from_token_ids(cls, token_ids: Int[Tensor, "b n"], vocabulary: "HybridVocabulary") -> "HybridTokens":
        """The exact inverse of `to_token_ids`."""
        return vocabulary.from_token_ids(token_ids)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file atomically, with the tokenizer's name and hash in its metadata.

        Tokens read from a file of version 1 are written as version 1, because their hash cannot be compared with the
        current kind.
        """
        first = self.source is not None and not self.source.hash.startswith(HASH_PREFIX)
        tensors = {f"guide_indices.{i}": grid.int() for i, grid in enumerate(self.guide_indices)}
        metadata = {
            "format": FILE_FORMAT,
            "version": FIRST_VERSION if first else FILE_VERSION,
            "image_height": str(self.image_size[0]),
            "image_width": str(self.image_size[1]),
        }
        if self.source is not None:
            metadata |= {"tokenizer": self.source.name, "tokenizer_hash": self.source.hash}
        save_tensors(Path(path), {"semantic_indices": self.semantic_indices.int(), **tensors}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "HybridTokens":
        """Read a file that `save` wrote, onto the CPU.

        Args:
            path: of the file.

        Returns:
            The tokens, with the tokenizer that made them as their source.

        Raises:
            HybridTokenizerError: the file is missing, damaged, of another kind, or not written by `save`.
        """
        path = Path(path)
        if not path.is_file():
            raise HybridTokenizerError(f"token file {path} does not exist; write one with HybridTokens.save")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, *UNREADABLE) as error:
            raise HybridTokenizerError(
                f"token file {path} is damaged or incomplete ({first_line(error)}); write it again"
            ) from None
        version = metadata.get("version")
        if metadata.get("format") != FILE_FORMAT or version not in (FILE_VERSION, FIRST_VERSION):
            raise HybridTokenizerError(
                f"{path} says format {shown(metadata.get('format'))} version {shown(version)}, expected "
                f"{FILE_FORMAT!r} {FIRST_VERSION!r} or {FILE_VERSION!r}; give a file that HybridTokens.save wrote"
            )
        names = ["semantic_indices", *(f"guide_indices.{i}" for i in range(len(tensors) - 1))]
        if set(names) != set(tensors) or len(names) < 2:
            raise HybridTokenizerError(
                f"token file {path} holds {shown(sorted(tensors))}, expected semantic_indices, guide_indices.0 and so on; "
                "write it again"
            )
        try:
            tokens = cls(
                semantic_indices=tensors["semantic_indices"],
                guide_indices=tuple(tensors[name] for name in names[1:]),
                image_size=(_stored_side(metadata, "image_height"), _stored_side(metadata, "image_width")),
                source=_stored_source(metadata, version),
            )
            tokens.check_codebooks(MOST_IDS, MOST_IDS)
        except HybridTokenizerError as error:
            raise HybridTokenizerError(f"token file {path}: {error}") from None
        return tokens


@dataclass(frozen=True, repr=False)
class HybridVocabulary:
    """Positions of a tokenizer's codes in the vocabulary of a language model. `HybridTokenizer.vocabulary` creates one.

    Text ids 0..text_vocab_size-1 stay as they are; then come `<img>`, `</img>`, the semantic codes and the guide codes.
    An image is the sequence `<img> semantic(32) guide(n) </img>`, semantic first, grids coarse to fine, each in raster
    order. A sequence may hold only the first grids (a nested guide's prefix); its length determines how many.

    Args:
        semantic_codebook_size: how many semantic codes there are.
        guide_codebook_size: how many guide codes there are.
        grid_shapes: (h, w) of every guide grid, coarse to fine. Ids alone do not say them.
        image_size: (height, width) of the images that sequences stand for.
        text_vocab_size: how many text ids come first.
        source: the tokenizer that the codes belong to.

    Raises:
        HybridTokenizerError: a number that is none, or outside its range.

    Examples:
        >>> vocabulary = tokenizer.vocabulary(text_vocab_size=32000)
        >>> ids = tokenizer.encode("cat.jpg").to_token_ids(vocabulary)
        >>> tokenizer.decode(ids, vocabulary=vocabulary)
    """

    semantic_codebook_size: int
    guide_codebook_size: int
    grid_shapes: tuple[tuple[int, int], ...]
    image_size: tuple[int, int]
    text_vocab_size: int = 0
    source: TokenSource | None = None

    def __post_init__(self) -> None:
        for name, least in (("semantic_codebook_size", 1), ("guide_codebook_size", 1), ("text_vocab_size", 0)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), least, MOST_IDS))
        if not isinstance(self.grid_shapes, (tuple, list)) or not self.grid_shapes:
            raise HybridTokenizerError(
                f"grid_shapes is {shown(self.grid_shapes)}, expected (h, w) of every guide grid, coarse to fine"
            )
        shapes = tuple(check_size("a grid of grid_shapes", shape) for shape in self.grid_shapes)
        object.__setattr__(self, "grid_shapes", shapes)
        object.__setattr__(self, "image_size", check_size("image_size", self.image_size))
        if self.size > MOST_IDS:
            raise HybridTokenizerError(
                f"the vocabulary has {self.size} ids, expected at most {MOST_IDS}; use fewer text ids"
            )

    def __repr__(self) -> str:
        text = f"text 0..{self.text_vocab_size - 1}, " if self.text_vocab_size else ""
        height, width = self.image_size
        return (
            f"HybridVocabulary({text}<img> {self.begin_id}, </img> {self.end_id}, semantic {self.semantic_offset}.."
            f"{self.guide_offset - 1}, guide {self.guide_offset}..{self.size - 1}; "
            f"{' or '.join(map(str, self.sequence_lengths))} ids per {height}x{width} image)"
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
        """Number of rows that the language model's embedding needs: text, both boundaries and both codebooks."""
        return self.guide_offset + self.guide_codebook_size

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Ids per image with the first 1, 2, ... grids; the last is the whole image."""
        guide = itertools.accumulate(h * w for h, w in self.grid_shapes)
        return tuple(2 + NUM_SEMANTIC_TOKENS + n for n in guide)

    def to_token_ids(self, tokens: HybridTokens) -> Int[Tensor, "b n"]:
        """Indices to ids, of shape (b, n). The tokens' grids must be this vocabulary's, or its first few.

        Raises:
            HybridTokenizerError: tokens of another image size, of other grids, or of another tokenizer.
        """
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

    def from_token_ids(self, token_ids: Int[Tensor, "*b n"] | Int[np.ndarray, "*b n"] | Sequence[Any]) -> HybridTokens:
        """Ids to indices, exactly.

        Args:
            token_ids: one sequence per image; lists of whole numbers will do, and one sequence alone is a batch of one.

        Returns:
            The tokens, with the vocabulary's image size and source.

        Raises:
            HybridTokenizerError: a wrong length, a missing boundary or a misplaced id, with its position.
        """
        token_ids = _as_ids(token_ids)
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


def check_source(
    tokens_source: TokenSource | None,
    reader_source: TokenSource | None,
    first_hash: Callable[[], str] | None = None,
) -> None:
    """Raise when both sides name a tokenizer and the hashes differ.

    Args:
        first_hash: makes the reader's hash as files of version 1 hold it. It is called for tokens of such a file alone.
    """
    if tokens_source is None or reader_source is None or tokens_source.hash == reader_source.hash:
        return
    first = [not source.hash.startswith(HASH_PREFIX) for source in (tokens_source, reader_source)]
    if first == [True, False]:
        if first_hash is None:
            raise HybridTokenizerError(
                f"these tokens of {tokens_source} are of a file of version {FIRST_VERSION}, whose hash only their tokenizer can "
                "check; pass them through HybridTokenizer.adopt first"
            )
        if first_hash() == tokens_source.hash:
            return
    raise HybridTokenizerError(
        f"these tokens were made by tokenizer {tokens_source}, not by {reader_source}; "
        "load the tokenizer that made them, or encode the images again"
    )


def _stored_side(metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get(name)
    if text is None or not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise HybridTokenizerError(f"{name} is {shown(text)}, expected a number of pixels; write it again")
    return int(text)


def _stored_source(metadata: Mapping[str, str], version: str) -> TokenSource | None:
    name, digest = metadata.get("tokenizer"), metadata.get("tokenizer_hash")
    if name is None and digest is None:
        return None
    prefix = HASH_PREFIX if version == FILE_VERSION else ""
    if name is None or digest is None or not re.fullmatch(f"{prefix}[0-9a-f]{{64}}", digest):
        raise HybridTokenizerError(
            f"tokenizer is {shown(name)} and tokenizer_hash {shown(digest)}, expected a name and a sha256; write it again"
        )
    return TokenSource(name, digest)


def _as_ids(token_ids: Any) -> Int[Tensor, "b n"]:
    """Convert ids of any kind to int64, one row per image."""
    if not isinstance(token_ids, Tensor):
        try:
            token_ids = torch.as_tensor(token_ids)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise HybridTokenizerError(
                f"token_ids is {shown(token_ids)}, expected whole numbers, equally many per image"
            ) from None
    token_ids = token_ids[None] if token_ids.ndim == 1 else token_ids
    if token_ids.ndim != 2 or token_ids.dtype not in INTEGERS:
        raise HybridTokenizerError(
            f"token_ids is {token_ids.dtype} of shape {tuple(token_ids.shape)}, expected integers of shape (images, ids)"
        )
    return token_ids.long()


def _check_indices(name: str, indices: Any, ndim: int) -> None:
    layout = "(b, 32)" if ndim == 2 else "(b, h, w)"
    if not isinstance(indices, Tensor):
        raise HybridTokenizerError(
            f"{name} is a {type(indices).__name__}, expected a tensor of integers of shape {layout}"
        )
    if indices.dtype not in INTEGERS or indices.ndim != ndim:
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
