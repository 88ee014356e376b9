"""Folders of images, nested or flat; which of them are held out; and the mark that keeps a run's own outputs out of its data."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from hybrid_tokenizer.data.open import IMAGE_SUFFIXES
from hybrid_tokenizer.errors import HybridTokenizerError, printable

RUN_MARK = ".hybrid_tokenizer_run"
RUN_MARK_TEXT = (
    "The pictures in this folder were written by a run. Image folders that hold this folder are read without it.\n"
)
MOST_LISTED = 5

Say = Callable[[str], None]


def find_images(root: str | os.PathLike[str], say: Say = tqdm.write) -> list[Path]:
    """Every image file under `root`, sorted by relative path.

    Hidden files and folders are left out. So are, and `say` hears of it, folders that a run wrote (see `mark_output`),
    links to folders, links that lead nowhere, and folders that cannot be read. `root` itself may be any of these but the last.
    """
    root = Path(root)
    if not root.is_dir():
        raise HybridTokenizerError(f"data.root={printable(root)!r} is not a folder; give a folder of images")
    left_out: dict[str, list[str]] = {}
    paths = sorted(walk_images(root, left_out), key=lambda path: path.relative_to(root).as_posix())
    for reason, names in left_out.items():
        shown = ", ".join(map(printable, sorted(names)[:MOST_LISTED]))
        more = f", and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
        say(f"left out of {printable(root)}: {reason.format(len(names))}: {shown}{more}")
    if not paths:
        raise HybridTokenizerError(
            f"data.root={printable(root)!r} holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}, "
            "nested or flat"
        )
    return paths


def walk_images(root: Path, left_out: dict[str, list[str]]) -> Iterator[Path]:
    """The image files under `root`, in any order; what is left out is added to `left_out` by its reason."""

    def leave_out(reason: str, path: str | os.PathLike[str]) -> None:
        left_out.setdefault(reason, []).append(os.path.relpath(path, root))

    def unreadable(error: OSError) -> None:
        leave_out(f"{{}} folder(s) that cannot be read ({error.strerror})", error.filename)

    for folder, folders, files in os.walk(root, onerror=unreadable):
        if RUN_MARK in files and folder != str(root):
            leave_out("{} folder(s) that a run wrote", folder)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                leave_out("{} linked folder(s), give them as further roots", os.path.join(folder, name))
        for name in files:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.is_file():
                yield path
            elif path.is_symlink():
                leave_out("{} link(s) that lead nowhere", path)


def mark_output(folder: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str] | None] = ()) -> None:
    """Make the folder of a run's outputs, and mark it, so that no run takes the pictures in it for data.

    A folder that holds pictures already, nested or flat, and no mark stays without one: they may be the user's.

    sources: the folders and files that the run reads; raises where the outputs would go into one of these folders, or beside
    one of these files, which they could replace.
    """
    folder = Path(folder)
    shown = printable(folder)
    for source in sources:
        if source is not None and folder.resolve() in _folders_of(Path(source)):
            raise HybridTokenizerError(f"output_dir={shown!r} is the folder of the data; give a folder of its own")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RUN_MARK).exists() or next(walk_images(folder, {}), None) is None:
            (folder / RUN_MARK).write_text(RUN_MARK_TEXT)
    except OSError as error:
        raise HybridTokenizerError(f"output_dir={shown!r} cannot be written ({error.strerror}); give another") from None


def _folders_of(source: Path) -> tuple[Path, ...]:
    """A folder itself, or the folders of a file and of what it links to."""
    return (source.parent.resolve(), source.resolve().parent) if source.is_file() else (source.resolve(),)


def hold_out(paths: list[Path], root: Path, fraction: float = 0.02, at_least: int = 8) -> tuple[list[Path], list[Path]]:
    """Split off a validation part by the hash of the relative path: the same files whatever else the folder holds.

    Returns (training, validation). A folder of fewer than 16 images gives up to half of them.
    """
    if len(paths) < 2:
        raise HybridTokenizerError(
            f"{printable(root)} holds {len(paths)} image(s); at least 2 are needed to hold one out for validation"
        )
    count = min(max(at_least, round(fraction * len(paths))), len(paths) // 2)
    ranked = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.relative_to(root).as_posix())).hexdigest())
    held = set(ranked[:count])
    return [path for path in paths if path not in held], [path for path in paths if path in held]
