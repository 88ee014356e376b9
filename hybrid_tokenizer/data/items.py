"""What a data set is a list of: image files, image files with captions, samples of shards."""

from pathlib import Path

from PIL import Image

from hybrid_tokenizer.data.captions import CaptionedImage, read_captions
from hybrid_tokenizer.data.folders import find_images, open_rgb
from hybrid_tokenizer.data.shards import ShardSample, find_shards, read_shards

Item = Path | CaptionedImage | ShardSample


def list_items(root: Path, captions: bool, index_folder: Path | None = None) -> list[Item]:
    """The images of a folder or of WebDataset shards, with their captions where these are wanted.

    index_folder: where the shards' indexes are kept for the next start.
    """
    shards = find_shards(root)
    if shards:
        return list(read_shards(shards, captions, index_folder))
    return list(read_captions(root)) if captions else list(find_images(root))


def item_path(item: Item) -> Path:
    """What messages call it; unique."""
    return item if isinstance(item, Path) else item.path


def open_item(item: Item) -> Image.Image:
    """The image as RGB. Raises UnreadableImage."""
    return item.open() if isinstance(item, ShardSample) else open_rgb(item_path(item))


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
