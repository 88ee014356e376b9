"""WebDataset shards, read by random access: each tar is indexed once, so the stream addresses samples like files.

Members of a shard with the same key are a sample: an image, and for its captions a .json (`captions`, a list, or
`caption`) or a .txt (one caption). Nothing is unpickled, and no member is read beyond its size limit.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import read_json, write_json
from hybrid_tokenizer.data.captions import CAPTIONS_NAME, usable_captions
from hybrid_tokenizer.data.folders import Say, walk_images
from hybrid_tokenizer.data.open import IMAGE_SUFFIXES, UnreadableImage, open_rgb
from hybrid_tokenizer.data.verify import Verify
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, printable

SHARD_SUFFIX = ".tar"
TEXT_SUFFIXES = (".json", ".txt")  # the first that names a caption is used
MAX_IMAGE_BYTES, MAX_TEXT_BYTES = 256 * 2**20, 2**20
BLOCK = 512
INDEX_VERSION = 2
FURTHER_IMAGE = re.compile(r"([A-Za-z][A-Za-z0-9_-]*\.)+[A-Za-z]+")
"""What follows the key's dot in `k.depth.png`, an image that belongs to `k.jpg`; in `IMG_2024.11.01.jpg` it is a number."""
DOUBTS = {
    "dots": "key(s) stand for several photographs by WebDataset's rule that a key ends at the first dot; there it ends later",
    "further": "further image(s) of samples are not read",
}
"""What names in a shard can leave in doubt, and what was done."""


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

    def open(self, verify: Verify = "full") -> Image.Image:
        """The image as RGB. Raises UnreadableImage."""
        return open_rgb(self.path, data=self.read_bytes(), verify=verify)

    def read_bytes(self) -> bytes:
        """The image's file. Raises UnreadableImage."""
        return self._read(self.image, MAX_IMAGE_BYTES)

    def read_captions(self) -> tuple[str, ...]:
        """The captions, at least one. Raises UnreadableImage when there is none."""
        reason = f"no caption in {' or '.join(TEXT_SUFFIXES)} beside it"
        for member in self.texts or ():
            text = self._read(member, MAX_TEXT_BYTES)
            try:
                listed = _listed_captions(member.suffix, text.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise UnreadableImage(self.path, f"its {member.suffix} is damaged ({first_line(error)})") from None
            try:
                return usable_captions(listed)
            except ValueError as error:
                reason = f"its {member.suffix}: {error}" if any(listed) else reason
        raise UnreadableImage(self.path, reason)

    def _read(self, member: Member, limit: int) -> bytes:
        if member.size > limit:
            raise UnreadableImage(self.path, f"its {member.suffix} has {member.size} bytes, over the limit of {limit}")
        try:
            with open(self.shard, "rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise UnreadableImage(self.path, f"{self.shard.name} cannot be read ({error.strerror})") from None
        if len(data) < member.size:
            raise UnreadableImage(self.path, f"{self.shard.name} ends inside it")
        return data


def _listed_captions(suffix: str, text: str) -> list[Any]:
    if suffix != ".json":
        return [text]
    values = json.loads(text)
    found = values.get("captions", [values.get("caption")]) if isinstance(values, dict) else []
    return found if isinstance(found, list) else [found]


def find_shards(root: str | os.PathLike[str], say: Say = tqdm.write) -> list[Path]:
    """The shards that `root` names: a .tar, a brace pattern of them, or a folder that holds some. Empty for other folders.

    A folder with both pictures and shards counts as what it has more of, and `say` hears which that is.

    Raises HybridTokenizerError when a shard of the pattern is missing or compressed.
    """
    root = Path(root)
    shown = printable(root)
    if root.is_dir():
        shards = [] if (root / CAPTIONS_NAME).is_file() else sorted(root.glob(f"*{SHARD_SUFFIX}"))
        pictures = sum(1 for _ in islice(walk_images(root, {}), len(shards)))
        if shards and pictures == len(shards):
            say(
                f"{shown}: {len(shards)} {SHARD_SUFFIX} file(s) beside the pictures are not read; name them to read them"
            )
            return []
        if pictures:
            say(f"{shown}: {pictures} picture(s) beside the {len(shards)} {SHARD_SUFFIX} files are not read")
        return shards
    if root.name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise HybridTokenizerError(f"data.root={shown!r} is compressed; unpack it to .tar, images hardly shrink")
    if root.suffix != SHARD_SUFFIX:
        return []
    from webdataset.shardlists import expand_urls

    shards = [Path(name) for name in expand_urls(str(root))]
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        raise HybridTokenizerError(
            f"{len(missing)} of {len(shards)} shards of data.root={shown!r} are not there, the first: {missing[0]}; "
            "restore them or change the pattern"
        )
    return shards


def read_shards(
    shards: Sequence[Path], captions: bool, index_folder: Path | None, say: Say = tqdm.write
) -> list[ShardSample]:
    """Every sample of `shards`, in order. Without `captions` the text beside the images is left alone.

    Each shard's index is kept in `index_folder`, and made anew when the shard's size or time changed. `say` hears of
    members whose names leave doubt about what belongs together.
    """
    samples: list[ShardSample] = []
    doubts: dict[str, list[Any]] = {}
    for shard in tqdm(shards, desc="shards", unit="shard", leave=False, disable=None):
        index = _shard_index(shard, index_folder)
        for name, image, texts in index["samples"]:
            members = tuple(Member(*text) for text in texts) if captions else None
            samples.append(ShardSample(shard, name, Member(*image), members))
        for doubt, (count, name) in index["doubts"].items():
            doubts.setdefault(doubt, [0, f"{shard.name}/{name}"])[0] += count
    for doubt, (count, first) in doubts.items():
        say(f"{count} {DOUBTS[doubt]}, the first: {printable(first)}")
    return samples


def _shard_index(shard: Path, folder: Path | None) -> dict[str, Any]:
    """`samples`: [[member's name, [suffix, offset, size] of the image, and those of its texts], ...]; `doubts`: one of
    DOUBTS -> [how often, the first member's name]."""
    stat = shard.stat()
    facts = {
        "version": INDEX_VERSION,
        "shard": str(shard.absolute()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }
    digest = hashlib.sha256(os.fsencode(facts["shard"])).hexdigest()[:12]
    stored = None if folder is None else folder / f"{shard.stem}-{digest}.json"
    if stored is not None and stored.is_file():
        known = read_json(stored)
        if {name: known.get(name) for name in facts} == facts:
            return known
    samples, doubts = _scan(shard)
    if not samples:
        raise HybridTokenizerError(f"{shard} holds no images; expected members ending in {', '.join(IMAGE_SUFFIXES)}")
    index = {**facts, "samples": samples, "doubts": doubts}
    if stored is not None:
        write_json(stored, index)
    return index


def _scan(shard: Path) -> tuple[list[Any], dict[str, list[Any]]]:
    """Samples of a shard by its headers alone, in the order of their keys, and what its names leave in doubt.

    A key ends at the first dot of a file's name, as WebDataset has it, as long as that loses nothing.
    """
    groups: dict[str, dict[str, Member]] = {}
    for path, offset, size in _headers(shard):
        folder, slash, name = path.lstrip("/").rpartition("/")
        key, dot, extension = name.partition(".")
        if key and dot:  # else a hidden file, or one without an extension
            member = Member("." + extension.rsplit(".", 1)[-1].lower(), offset, size)
            # of two with one name the later counts, as when a tar is unpacked
            groups.setdefault(f"{folder}{slash}{key}", {})[extension] = member
    samples: list[Any] = []
    doubts: dict[str, list[Any]] = {}
    for key, members in groups.items():
        _add_samples(key, members, samples, doubts)
    return samples, doubts


def _add_samples(key: str, members: dict[str, Member], samples: list[Any], doubts: dict[str, list[Any]]) -> None:
    """The sample of a key, or, where photographs with dots in their names have it in common, those of longer keys.

    members: what follows the key's dot -> where it lies.
    """
    images = [extension for extension, member in members.items() if member.suffix in IMAGE_SUFFIXES]
    plain = [extension for extension in images if "." not in extension]
    others = [extension for extension in images if "." in extension]
    if len(images) > 1 and not (plain and all(map(FURTHER_IMAGE.fullmatch, others))):
        doubts.setdefault("dots", [0, f"{key}.{others[0]}"])[0] += 1
        longer: dict[str, dict[str, Member]] = {}
        for extension, member in members.items():
            more, dot, rest = extension.partition(".")
            longer.setdefault(f"{key}.{more}" if dot else key, {})[rest if dot else extension] = member
        for longer_key, its_members in longer.items():
            _add_samples(longer_key, its_members, samples, doubts)
    elif images:
        image, *further = plain + others
        if further:
            doubts.setdefault("further", [0, f"{key}.{further[0]}"])[0] += len(further)
        texts = [list(members[extension]) for extension in _texts_of(image, members)]
        samples.append([f"{key}.{image}", list(members[image]), texts])


def _texts_of(image: str, members: dict[str, Member]) -> list[str]:
    """The one text of each kind that belongs to the image most closely: called like it, called like the sample, any."""

    def distance(extension: str) -> tuple[bool, bool]:
        return extension.rpartition(".")[0] != image.rpartition(".")[0], "." in extension

    by_kind = [[name for name, member in members.items() if member.suffix == suffix] for suffix in TEXT_SUFFIXES]
    return [min(names, key=distance) for names in by_kind if names]


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
