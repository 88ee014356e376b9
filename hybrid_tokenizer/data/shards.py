"""WebDataset shards, read by random access: each tar is indexed once, so the stream addresses samples like files.

Members with the same key that follow one another are a sample: an image, and for its captions a .json (`captions`, a
list, or `caption`) or a .txt (one caption). Nothing is unpickled, and no member is read beyond its size limit.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.data.captions import CAPTIONS_NAME
from hybrid_tokenizer.data.folders import IMAGE_SUFFIXES, UnreadableImage, open_rgb
from hybrid_tokenizer.errors import HybridTokenizerError

SHARD_SUFFIX = ".tar"
TEXT_SUFFIXES = (".json", ".txt")  # the first that names a caption is used
MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 256 * 2**20, 2**20
BLOCK = 512
INDEX_VERSION = 1


class Member(NamedTuple):
    """Where a file lies inside its shard."""

    suffix: str
    offset: int
    size: int


class ShardSample(NamedTuple):
    """One image of a shard and the members that may hold its captions; opened when it is drawn."""

    shard: Path
    name: str
    image: Member
    texts: tuple[Member, ...] | None
    """None where captions were not asked for."""

    @property
    def path(self) -> Path:
        """What messages call it: the shard's path and the member's name."""
        return self.shard / self.name

    def open(self) -> Image.Image:
        """The image as RGB. Raises UnreadableImage."""
        return open_rgb(self.path, data=self.read_bytes())

    def read_bytes(self) -> bytes:
        """The image's file. Raises UnreadableImage."""
        return self._read(self.image, MAX_IMAGE_BYTES)

    def read_captions(self) -> tuple[str, ...]:
        """The captions, at least one. Raises UnreadableImage when there is none."""
        for member in self.texts or ():
            try:
                captions = _parse_captions(member.suffix, self._read(member, MAX_TEXT_BYTES).decode("utf-8-sig"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                raise UnreadableImage(self.path, f"its {member.suffix} is damaged ({error})") from None
            if captions:
                return captions
        raise UnreadableImage(self.path, f"no caption in {' or '.join(TEXT_SUFFIXES)} beside it")

    def _read(self, member: Member, limit: int) -> bytes:
        if member.size > limit:
            raise UnreadableImage(self.path, f"its {member.suffix} has {member.size} bytes, over the limit of {limit}")
        try:
            with open(self.shard, "rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise UnreadableImage(self.path, f"{self.shard.name} can not be read ({error.strerror})") from None
        if len(data) < member.size:
            raise UnreadableImage(self.path, f"{self.shard.name} ends inside it")
        return data


def _parse_captions(suffix: str, text: str) -> tuple[str, ...]:
    found: Any = [text]
    if suffix == ".json":
        values = json.loads(text)
        found = values.get("captions", [values.get("caption")]) if isinstance(values, dict) else []
    if not isinstance(found, list):
        found = [found]
    return tuple(caption.strip() for caption in found if isinstance(caption, str) and caption.strip())


def find_shards(root: str | os.PathLike[str]) -> list[Path]:
    """The shards that `root` names: a .tar, a brace pattern of them, or a folder that holds some. Empty for other folders.

    Raises HybridTokenizerError when a shard of the pattern is missing or compressed.
    """
    root = Path(root)
    if root.is_dir():
        return [] if (root / CAPTIONS_NAME).is_file() else sorted(root.glob(f"*{SHARD_SUFFIX}"))
    if root.name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise HybridTokenizerError(f"data.root={str(root)!r} is compressed; unpack it to .tar, images hardly shrink")
    if root.suffix != SHARD_SUFFIX:
        return []
    from webdataset.shardlists import expand_urls

    shards = [Path(name) for name in expand_urls(str(root))]
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        raise HybridTokenizerError(
            f"{len(missing)} of {len(shards)} shards of data.root={str(root)!r} are not there, the first: {missing[0]}; "
            "restore them or change the pattern"
        )
    return shards


def read_shards(shards: Sequence[Path], captions: bool, index_folder: Path | None) -> list[ShardSample]:
    """Every sample of `shards`, in order. Without `captions` the text beside the images is left alone.

    Each shard's index is kept in `index_folder`, and made anew when the shard's size or time changed.
    """
    samples: list[ShardSample] = []
    for shard in tqdm(shards, desc="shards", unit="shard", leave=False, disable=None):
        for name, image, texts in _shard_index(shard, index_folder):
            members = tuple(Member(*text) for text in texts) if captions else None
            samples.append(ShardSample(shard, name, Member(*image), members))
    return samples


def _shard_index(shard: Path, folder: Path | None) -> list[Any]:
    """[[member's name, [suffix, offset, size] of the image, and those of its texts], ...]"""
    stat = shard.stat()
    facts = {
        "version": INDEX_VERSION,
        "shard": str(shard.absolute()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }
    digest = hashlib.sha256(facts["shard"].encode()).hexdigest()[:12]
    stored = None if folder is None else folder / f"{shard.stem}-{digest}.json"
    if stored is not None and stored.is_file():
        known = read_json(stored)
        if {name: known.get(name) for name in facts} == facts:
            return known["samples"]
    samples = [[name, list(image), [list(text) for text in texts]] for name, image, texts in _scan(shard)]
    if not samples:
        raise HybridTokenizerError(f"{shard} holds no images; expected members ending in {', '.join(IMAGE_SUFFIXES)}")
    if stored is not None:
        write_json(stored, {**facts, "samples": samples})
    return samples


def _scan(shard: Path) -> Iterator[tuple[str, Member, list[Member]]]:
    """Samples of a shard by its headers alone."""
    from webdataset.tariterators import base_plus_ext

    key, image, texts = None, None, {}
    for name, offset, size in _headers(shard):
        base, extension = base_plus_ext(name)
        if base is None or name.rsplit("/", 1)[-1].startswith("."):  # a hidden file, or one without an extension
            continue
        if base != key:
            if image is not None:
                yield *image, [texts[suffix] for suffix in TEXT_SUFFIXES if suffix in texts]
            key, image, texts = base, None, {}
        suffix = "." + extension.rsplit(".", 1)[-1].lower()
        if suffix in IMAGE_SUFFIXES and image is None:
            image = (name, Member(suffix, offset, size))
        elif suffix in TEXT_SUFFIXES:
            texts.setdefault(suffix, Member(suffix, offset, size))
    if image is not None:
        yield *image, [texts[suffix] for suffix in TEXT_SUFFIXES if suffix in texts]


def _headers(shard: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each regular file. Raises when the tar is cut off or damaged."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError) as error:
        raise HybridTokenizerError(
            f"shard {shard} is incomplete or no tar ({error}); download or write it again"
        ) from None
    # the reader takes any bad header after the first for the end; only blocks of zeros are one
    with open(shard, "rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise HybridTokenizerError(
                f"shard {shard} is incomplete (no end mark at byte {end}); download or write it again"
            )
