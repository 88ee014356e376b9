"""COCO's captions beside a folder of its images: captions_val2017.json and its like, or Karpathy's dataset_coco.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hybrid_tokenizer.checkpoints.files import read_json
from hybrid_tokenizer.data.captions import CaptionedImage, SkippedRow, list_skipped, path_inside, usable_captions
from hybrid_tokenizer.data.folders import Say
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, printable

ROW_ERRORS = (KeyError, TypeError, AttributeError, ValueError, OSError, RuntimeError)
"""What a row raises that is not as COCO writes it, or names no possible file."""


def read_coco(
    annotations: str | Path, root: str | Path, split: str = "test", say: Say = tqdm.write
) -> list[CaptionedImage]:
    """Pairs in the file's order. Rows that cannot be used are skipped, counted and listed to `say`.

    split: of Karpathy's file, which holds all of them; COCO's own files are one split each.

    Raises HybridTokenizerError when the file is of neither kind, has no pair, or none of its images is under `root`.
    """
    pairs, skipped = parse_coco(annotations, root, split)
    list_skipped(skipped, say)
    return pairs


def parse_coco(
    annotations: str | Path, root: str | Path, split: str = "test"
) -> tuple[list[CaptionedImage], list[SkippedRow]]:
    """The same, and the rows that cannot be used instead of a listing."""
    annotations, root = Path(annotations), Path(root)
    content = read_json(annotations)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise HybridTokenizerError(f"{annotations} has no list 'images'; give COCO's captions JSON, or Karpathy's")
    pairs: list[CaptionedImage] = []
    skipped: list[SkippedRow] = []
    captions = _captions_by_image(annotations, content["annotations"], skipped) if "annotations" in content else None
    inside = root.resolve()
    for number, image in enumerate(content["images"]):
        try:
            if captions is None and image["split"] != split:
                continue
            names, texts = _karpathy(image) if captions is None else _own(image, captions)
            if captions is not None and not texts:  # not every image of a set has captions
                continue
            paths = [path_inside(root, inside, name) for name in names]
            found = next((path for path in paths if path.is_file()), paths[0])
            pairs.append(CaptionedImage(found, usable_captions(texts)))
        except ROW_ERRORS as error:
            skipped.append(_skipped(annotations, "image", number, error))
    if not pairs:
        raise HybridTokenizerError(_no_pairs(annotations, content["images"], split, captions is None, skipped))
    if not any(pair.path.is_file() for pair in pairs):
        raise HybridTokenizerError(
            f"none of the {len(pairs)} images of {annotations} is under data.root={str(root)!r}, the first would be "
            f"{pairs[0].path}; give the folder of the images"
        )
    return pairs, skipped


def _captions_by_image(annotations: Path, rows: Any, skipped: list[SkippedRow]) -> dict[Any, list[str]]:
    captions: dict[Any, list[str]] = {}
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        try:
            captions.setdefault(row["image_id"], []).extend(usable_captions([row["caption"]]))
        except ROW_ERRORS as error:
            skipped.append(_skipped(annotations, "annotation", number, error))
    return captions


def _skipped(annotations: Path, kind: str, number: int, error: Exception) -> SkippedRow:
    reason = f"lacks {error}" if isinstance(error, KeyError) else first_line(error)
    return SkippedRow(printable(f"{annotations} {kind} {number}"), printable(reason))


def _own(image: Any, captions: dict[Any, list[str]]) -> tuple[list[Any], list[str]]:
    return [image["file_name"]], captions.get(image["id"], [])


def _karpathy(image: Any) -> tuple[Sequence[str], list[Any]]:
    # `filepath` is val2014 or train2014, which not everybody keeps
    names = [f"{image.get('filepath', '.')}/{image['filename']}", image["filename"]]
    return names, [sentence["raw"] for sentence in image["sentences"]]


def _no_pairs(annotations: Path, images: list[Any], split: str, has_splits: bool, skipped: list[SkippedRow]) -> str:
    splits = sorted({str(image["split"]) for image in images if isinstance(image, dict) and "split" in image})
    if has_splits and splits and split not in splits:
        return f"{annotations} has no captions of split {split!r}; it has {', '.join(splits)}"
    reason = f" ({skipped[0].where}: {skipped[0].reason})" if skipped else ""
    return f"{annotations} has no usable captions{reason}; download it again"
