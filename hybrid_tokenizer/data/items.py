"""What a data set is a list of: image files, image files with captions, samples of shards."""

from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from hybrid_tokenizer.data.captions import CaptionedImage, SkippedRow, list_skipped, parse_captions
from hybrid_tokenizer.data.folders import Say, find_images
from hybrid_tokenizer.data.open import open_rgb
from hybrid_tokenizer.data.shards import ShardSample, find_shards, read_shards
from hybrid_tokenizer.data.verify import Verify

Item = Path | CaptionedImage | ShardSample


def list_items(root: Path, captions: bool, index_folder: Path | None = None, say: Say = tqdm.write) -> list[Item]:
    """The images of a folder or of WebDataset shards, with their captions where these are wanted.

    index_folder: where the shards' indexes are kept for the next start.
    say: hears of what is left out, and of names that leave doubt.
    """
    if captions:
        pairs, skipped = list_pairs(root, index_folder, say)
        list_skipped(skipped, say)
        return pairs
    shards = find_shards(root, say)
    return list(read_shards(shards, False, index_folder, say) if shards else find_images(root, say))


def list_pairs(
    root: Path, index_folder: Path | None = None, say: Say = tqdm.write
) -> tuple[list[Item], list[SkippedRow]]:
    """The images with captions, and rows of the captions' file that cannot be used. Shards tell when they are read."""
    if shards := find_shards(root, say):
        return list(read_shards(shards, True, index_folder, say)), []
    pairs, skipped = parse_captions(root)
    return list(pairs), skipped


def item_path(item: Item) -> Path:
    """What messages call it; unique."""
    return item if isinstance(item, Path) else item.path


def item_stamp(item: Item) -> list[Any]:
    """What a cache of an item's pixels is made for: its name, and where its bytes lie and how many and how old they are."""
    place = list(item.image) if isinstance(item, ShardSample) else []
    path = item.shard if isinstance(item, ShardSample) else item_path(item)
    try:
        stat = path.stat()
    except OSError:  # it is skipped when it is opened
        return [str(item_path(item)), *place]
    return [str(item_path(item)), *place, stat.st_size, stat.st_mtime_ns]


def open_item(item: Item, verify: Verify = "full") -> Image.Image:
    """The image as RGB. Raises UnreadableImage."""
    return item.open(verify) if isinstance(item, ShardSample) else open_rgb(item_path(item), verify=verify)


def item_captions(item: Item) -> tuple[str, ...]:
    """The captions, one empty one where none were asked for. Raises UnreadableImage for a shard's sample without any."""
    if isinstance(item, ShardSample):
        return item.read_captions() if item.texts is not None else ("",)
    return item.captions if isinstance(item, CaptionedImage) else ("",)


def folder_of(root: Path) -> Path:
    """The folder that relative names count from: `root`, or for a shard or a pattern the last one above any brace."""
    folder = root if root.is_dir() else root.parent
    while "{" in str(folder):
        folder = folder.parent
    return folder
