"""Image-text pairs from a folder with `captions.jsonl`: one row an image, `file` and `captions`."""

import json
from pathlib import Path
from typing import NamedTuple

from hybrid_tokenizer.errors import HybridTokenizerError

CAPTIONS_NAME = "captions.jsonl"


class CaptionedImage(NamedTuple):
    path: Path
    captions: tuple[str, ...]


def read_captions(root: str | Path) -> list[CaptionedImage]:
    """The rows of `root`/captions.jsonl in file order.

    Raises HybridTokenizerError with the line's number for broken JSON, an image that is not there, a path that leaves the
    folder, or a row without any caption.
    """
    root = Path(root)
    listing = root / CAPTIONS_NAME
    if not listing.is_file():
        raise HybridTokenizerError(f"{listing} does not exist; image-text pairs need one row an image: file, captions")
    rows = []
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HybridTokenizerError(f"{listing} is not UTF-8 ({error}); save it again as UTF-8") from None
    # not splitlines(), which also breaks at separators that JSON allows inside a caption
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_parse_row(root, f"{listing} line {number}", line))
    if not rows:
        raise HybridTokenizerError(f"{listing} has no rows; write one row an image: file, captions")
    return rows


def _parse_row(root: Path, where: str, line: str) -> CaptionedImage:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise HybridTokenizerError(f"{where} is not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not isinstance(row.get("captions"), list):
        raise HybridTokenizerError(f"{where} lacks 'file' (a string) or 'captions' (a list of strings)")
    captions = tuple(text.strip() for text in row["captions"] if isinstance(text, str) and text.strip())
    if not captions:
        raise HybridTokenizerError(f"{where}: {row['file']} has no caption; give at least one or remove the row")
    path = root / row["file"]
    if not path.resolve().is_relative_to(root.resolve()):
        raise HybridTokenizerError(f"{where}: {row['file']!r} leaves the folder; give a path inside {root}")
    if not path.is_file():
        raise HybridTokenizerError(f"{where}: {row['file']} is not there; remove the row or restore the image")
    return CaptionedImage(path, captions)
