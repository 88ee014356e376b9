"""COCO's captions beside a folder of its images: captions_val2017.json and its like, or Karpathy's dataset_coco.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybrid_tokenizer.checkpoints.files import read_json
from hybrid_tokenizer.data.captions import CaptionedImage
from hybrid_tokenizer.errors import HybridTokenizerError


def read_coco(annotations: str | Path, root: str | Path, split: str = "test") -> list[CaptionedImage]:
    """Pairs in the file's order; images without a caption are left out.

    split: of Karpathy's file, which holds all of them; COCO's own files are one split each.

    Raises HybridTokenizerError when the file is of neither kind, has no pair, or none of its images is under `root`.
    """
    annotations, root = Path(annotations), Path(root)
    content = read_json(annotations)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise HybridTokenizerError(f"{annotations} has no list 'images'; give COCO's captions JSON, or Karpathy's")
    try:
        listed = _own(content) if "annotations" in content else _karpathy(content, split)
    except (KeyError, TypeError, AttributeError) as error:
        raise HybridTokenizerError(
            f"{annotations} is no COCO captions JSON ({type(error).__name__}: {error}); download it again"
        ) from None
    pairs = []
    for places, captions in listed:
        cleaned = tuple(text.strip() for text in captions if text.strip())
        paths = [root / place for place in places]
        if cleaned:
            pairs.append(CaptionedImage(next((path for path in paths if path.is_file()), paths[0]), cleaned))
    if not pairs:
        splits = sorted({str(image.get("split")) for image in content["images"]})
        raise HybridTokenizerError(f"{annotations} has no captions of split {split!r}; it has {', '.join(splits)}")
    if not any(pair.path.is_file() for pair in pairs):
        raise HybridTokenizerError(
            f"none of the {len(pairs)} images of {annotations} is under data.root={str(root)!r}, the first would be "
            f"{pairs[0].path}; give the folder of the images"
        )
    return pairs


def _own(content: dict[str, Any]) -> list[tuple[Sequence[str], list[str]]]:
    captions: dict[int, list[str]] = {}
    for row in content["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    return [([image["file_name"]], captions.get(image["id"], [])) for image in content["images"]]


def _karpathy(content: dict[str, Any], split: str) -> list[tuple[Sequence[str], list[str]]]:
    return [
        # `filepath` is val2014 or train2014, which not everybody keeps
        (
            [f"{image.get('filepath', '.')}/{image['filename']}", image["filename"]],
            [s["raw"] for s in image["sentences"]],
        )
        for image in content["images"]
        if image["split"] == split
    ]
