"""Images that a command reads and files that it writes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from hybrid_tokenizer.data.folders import RUN_MARK
from hybrid_tokenizer.errors import HybridTokenizerError, printable


def check_exists(option: str, path: str | Path | None, what: str) -> None:
    """Raise where a path that the user gave as `option` does not exist. None is a path that was not given."""
    if path is not None and not Path(path).exists():
        raise HybridTokenizerError(f"{option}{printable(path)} does not exist; give {what}")


def check_names_folder(option: str, path: Path, suffixes: Sequence[str], written: str) -> None:
    """Raise where the folder that the user gave as `option` is called like a file. `written` is the suffix of the files in it."""
    if path.suffix.lower() in suffixes:
        raise HybridTokenizerError(
            f"{option}{printable(path)} is called like a file; give a folder, in which NAME{written} is written"
        )


def labels(names: Sequence[str]) -> list[str]:
    """The names without their suffixes, except where two would then be the same."""
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    twice = Counter(stems)
    return [name if twice[stem] > 1 else stem for name, stem in zip(names, stems, strict=True)]


def check_outputs(folder: str | Path, names: Iterable[str], inputs: Iterable[Path] = ()) -> None:
    """Raise before anything is written where two of the files to write in `folder` are one, or one of them would replace one of
    `inputs` or a file that no run wrote. Results of an earlier run are replaced: its folder has a run's mark.
    """
    names = list(names)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise HybridTokenizerError(
            f"two results would both be written to {printable(twice[0])}; rename one of the images"
        )
    read, marked = {path.resolve() for path in inputs}, (Path(folder) / RUN_MARK).exists()
    for path in (Path(folder, name) for name in names):
        if path.exists() and (not marked or path.resolve() in read):
            raise HybridTokenizerError(f"{printable(path)} exists, and no run wrote it; give another output_dir")


def check_new(paths: Iterable[Path], option: str = "--output") -> None:
    """Raise where one of the files to write is there already. `option` is what names them."""
    for path in paths:
        if path.exists():
            raise HybridTokenizerError(f"{printable(path)} exists and is not written over; give another {option}")
