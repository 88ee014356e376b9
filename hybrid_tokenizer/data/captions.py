"""Image-text pairs from a folder with `captions.jsonl`: one row per image, `file` and `captions`."""

import json
import os
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from hybrid_tokenizer.data.folders import Say
from hybrid_tokenizer.errors import HybridTokenizerError, first_line, printable

CAPTIONS_NAME = "captions.jsonl"
MOST_LISTED = 20


class CaptionedImage(NamedTuple):
    path: Path
    captions: tuple[str, ...]


class SkippedRow(NamedTuple):
    """A row of a listing that cannot be used; the run goes on without it."""

    where: str
    reason: str


def read_captions(root: str | Path, say: Say = tqdm.write) -> list[CaptionedImage]:
    """The rows of `root`/captions.jsonl in file order. Rows that cannot be used are skipped, counted and listed to `say`.

    Raises HybridTokenizerError where there is no such file, or none of its rows can be used.
    """
    rows, skipped = parse_captions(root)
    list_skipped(skipped, say)
    return rows


def parse_captions(root: str | Path) -> tuple[list[CaptionedImage], list[SkippedRow]]:
    """The same, and the rows that cannot be used instead of a listing."""
    root = Path(root)
    listing = root / CAPTIONS_NAME
    if not listing.is_file():
        raise HybridTokenizerError(f"{listing} does not exist; image-text pairs need one row per image: file, captions")
    rows: list[CaptionedImage] = []
    skipped: list[SkippedRow] = []
    inside = root.resolve()
    # not splitlines(), which also breaks at separators that JSON allows inside a caption
    for number, line in enumerate(listing.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            try:
                row, unusable = _parse_row(root, inside, line)
                rows.append(row)
                if unusable:
                    raise ValueError(f"{unusable} of its captions are not text; the others are used")
            except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: links in a circle
                skipped.append(SkippedRow(printable(f"{listing} line {number}"), printable(first_line(error))))
    if not rows:
        reason = f"; {skipped[0].where}: {skipped[0].reason}" if skipped else ""
        raise HybridTokenizerError(f"{listing} has no usable rows; write one row per image: file, captions{reason}")
    return rows, skipped


def _parse_row(root: Path, inside: Path, line: bytes) -> tuple[CaptionedImage, int]:
    """The row, and how many of its captions are left out because they are not text."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error}); save it again as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({first_line(error)}); write one object per line") from None
    if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not isinstance(row.get("captions"), list):
        raise ValueError("lacks 'file' (a string) or 'captions' (a list of strings)")
    path = path_inside(root, inside, row["file"])
    if not path.is_file():
        raise ValueError(f"{row['file']} is not there; remove the row or restore the image")
    captions = usable_captions(row["captions"])
    return CaptionedImage(path, captions), sum(not is_text(caption) for caption in row["captions"])


def usable_captions(texts: Sequence[Any]) -> tuple[str, ...]:
    """Those that are captions: text, and not blank. Raises ValueError where there is none."""
    captions = tuple(text.strip() for text in texts if is_text(text) and text.strip())
    if not captions:
        odd = any(isinstance(text, str) and text.strip() for text in texts)
        raise ValueError("its caption holds half a character" if odd else "no caption; give at least one")
    return captions


def is_text(value: Any) -> bool:
    """Whether this is a string that every tokenizer takes: JSON can spell half a surrogate pair, which no encoding has."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_inside(root: Path, inside: Path, name: Any) -> Path:
    """The path of a file that a listing names. Raises ValueError for one outside of the folder, and for what is no name.

    inside: `root.resolve()`.
    """
    if not isinstance(name, str):
        raise ValueError(f"its file is {name!r}, expected a name")
    os.fsencode(name)  # raises where no file can be called that
    path = root / name
    if not path.resolve().is_relative_to(inside):
        raise ValueError(f"{name!r} leaves the folder; give a path inside {root}")
    return path


def list_skipped(skipped: Sequence[SkippedRow], say: Say) -> None:
    """Say which rows were skipped, the first of them one by one, and how many there are."""
    for row in skipped[:MOST_LISTED]:
        say(f"skipped {row.where}: {row.reason}")
    if len(skipped) > MOST_LISTED:
        say(f"skipped {len(skipped)} rows in all, {len(skipped) - MOST_LISTED} more than listed")
