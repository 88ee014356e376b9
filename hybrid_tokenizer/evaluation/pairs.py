"""Images and one caption each, in the order of the set."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from hybrid_tokenizer.data.captions import list_skipped
from hybrid_tokenizer.data.coco import parse_coco
from hybrid_tokenizer.data.items import folder_of, item_captions, item_path, list_pairs, open_item
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.evaluation.config import PairData
from hybrid_tokenizer.evaluation.images import EvalImages


@dataclass(frozen=True)
class Pairs:
    """`captions[i]` belongs to image i of `images`."""

    images: EvalImages
    captions: list[str]

    @property
    def captions_hash(self) -> str:
        """sha256 of the picked captions."""
        return hashlib.sha256("\n".join(self.captions).encode()).hexdigest()


def pick_caption(captions: Sequence[str], name: str, seed: int) -> str:
    """One caption, picked by a hash of the seed and the image's name, independent of the other images."""
    digest = hashlib.sha256(os.fsencode(f"{seed}:{name}")).digest()
    return captions[int.from_bytes(digest[:8], "big") % len(captions)]


def open_pairs(data: PairData, **options: Any) -> Pairs:
    """The pairs of a configuration. An unusable image is skipped with its caption. Options as for EvalImages."""
    if data.root is None:
        raise HybridTokenizerError(
            "data.root has no value; give a folder with captions.jsonl, WebDataset shards, or COCO's images with data.annotations=FILE"
        )
    root = Path(data.root)
    say = options.get("say", tqdm.write)
    items, rows = parse_coco(data.annotations, root, data.split) if data.annotations else list_pairs(root, say=say)
    list_skipped(rows, say)
    folder = folder_of(root)
    by_name = {item_path(item).relative_to(folder).as_posix(): item for item in items}
    if len(by_name) < len(items):
        raise HybridTokenizerError(
            f"{data.annotations or root} lists {len(items) - len(by_name)} image(s) twice; give one row per image"
        )

    def read(name: str) -> Image.Image:
        item_captions(by_name[name])  # raises where a shard has none for it
        return open_item(by_name[name], data.verify)

    images = EvalImages(
        list(by_name),
        read,
        data.image_size,
        root=folder,
        max_images=data.max_images,
        num_workers=data.num_workers,
        **options,
    )
    images.skipped[:0] = [{"path": row.where, "reason": row.reason} for row in rows]
    captions = [pick_caption(item_captions(by_name[name]), name, data.caption_seed) for name in images.sources]
    return Pairs(images, captions)
