"""Where images come from: every kind of input is a list of entries, and each entry gives the bytes of one image.

The list is made once, before the work starts, so that an image keeps its name and its place in every later run.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_tokenizer.corpus.config import ColumnConfig
from hybrid_tokenizer.data.captions import CAPTIONS_NAME, is_text, parse_captions
from hybrid_tokenizer.data.folders import find_images
from hybrid_tokenizer.data.open import UnreadableImage
from hybrid_tokenizer.data.shards import SHARD_SUFFIX, Member, ShardSample, find_shards, read_shards
from hybrid_tokenizer.errors import HybridTokenizerError, printable

PARQUET_SUFFIX = ".parquet"
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"
CAPTION_COLUMNS = ("captions", "caption", "text")


class Entry(NamedTuple):
    """One image of an input."""

    key: str
    """Unique and stable: the printable path below the folder that all inputs share, with the row's number in a table."""
    kind: str
    """One of READERS."""
    file: str
    position: int
    """Where the image starts in a tar, or its row in a table."""
    size: int
    """Bytes in a tar; 0 elsewhere."""
    captions: list[str]
    """Where the input lists them beside the images; readers find the others."""
    texts: list[list[Any]]
    """Of a tar: (suffix, position, size) of the members that may hold captions."""


ENTRY_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "kind": pa.string(),
        "file": pa.binary(),  # a path need not be UTF-8
        "position": pa.int64(),
        "size": pa.int64(),
        "captions": pa.list_(pa.string()),
        "texts": pa.list_(pa.struct({"suffix": pa.string(), "position": pa.int64(), "size": pa.int64()})),
    }
)


class Fetched(NamedTuple):
    """The bytes of an entry, or the reason why there are none."""

    entry: Entry
    data: bytes | UnreadableImage
    captions: list[str]


def list_entries(inputs: Sequence[str], columns: ColumnConfig) -> Iterator[Entry]:
    """Every image of the inputs, in a fixed order. Raises when an input is not there or holds no images."""
    remote = next((one for one in inputs if "://" in one), None)
    if remote is not None:
        raise HybridTokenizerError(
            f"input={remote!r} is not a path; mount it, or copy it to a file system of all nodes"
        )
    roots = [Path(one).absolute() for one in inputs]
    if len(set(roots)) < len(roots):
        raise HybridTokenizerError(f"input={list(inputs)} names a path twice; give each once")
    base = Path(os.path.commonpath([root if root.is_dir() else _parent(root) for root in roots]))
    for root in roots:
        yield from _entries_of(root, base, columns)


def entries_to_table(entries: Sequence[Entry]) -> pa.Table:
    """For the stored list."""
    columns = zip(*(entry._replace(file=os.fsencode(entry.file)) for entry in entries), strict=True)
    return pa.table(
        [pa.array(list(values), field.type) for values, field in zip(columns, ENTRY_SCHEMA, strict=True)], ENTRY_SCHEMA
    )


def entries_from_table(table: pa.Table) -> list[Entry]:
    """The reverse."""
    return [Entry(**row | {"file": os.fsdecode(row["file"])}) for row in table.to_pylist()]


def fetch(entries: Sequence[Entry], columns: ColumnConfig) -> Iterator[Fetched]:
    """The entries' bytes, in their order."""
    for (kind, file), group in itertools.groupby(entries, key=lambda entry: (entry.kind, entry.file)):
        yield from READERS[kind](file, list(group), columns)


def _parent(root: Path) -> Path:
    """The folder of a file, or the last one above the first brace or star of a pattern."""
    folder = root.parent
    while any(sign in str(folder) for sign in "{*?["):
        folder = folder.parent
    return folder


def _entries_of(root: Path, base: Path, columns: ColumnConfig) -> Iterator[Entry]:
    if (root / SAVED_SPLITS).is_file() or (root / SAVED_DATASET).is_file():
        yield from _list_saved(root, base)
    elif tables := _find_tables(root):
        yield from _list_tables(tables, base, columns)
    elif tars := find_shards(root):
        for sample in read_shards(tars, captions=True, index_folder=None):
            texts = [tuple(member) for member in sample.texts or ()]
            yield Entry(_key(sample.path, base), "tar", str(sample.shard), *sample.image[1:], [], texts)  # type: ignore[arg-type]
    elif root.is_dir():
        captions = _folder_captions(root)
        for path in find_images(root):
            yield Entry(_key(path, base), "file", str(path), 0, 0, captions.get(str(path), []), [])
    else:
        raise HybridTokenizerError(
            f"input={str(root)!r} is no folder, {SHARD_SUFFIX} or {PARQUET_SUFFIX} file, or a pattern of these; check the path"
        )


def _key(path: Path, base: Path) -> str:
    return printable(path.relative_to(base).as_posix())


def _folder_captions(root: Path) -> dict[str, list[str]]:
    """The captions of each file, where the folder lists some. A file without any is used all the same."""
    if not (root / CAPTIONS_NAME).is_file():
        return {}
    rows, without = parse_captions(root)
    if without:
        first = without[0]
        print(
            f"{len(without)} rows without a caption, or with one that is no text; the first is {first.where}: {first.reason}"
        )
    return {os.path.normpath(row.path): list(row.captions) for row in rows}


def _read_files(file: str, entries: list[Entry], columns: ColumnConfig) -> Iterator[Fetched]:
    for entry in entries:
        try:
            data: bytes | UnreadableImage = Path(file).read_bytes()
        except OSError as error:
            data = UnreadableImage(Path(entry.key), error.strerror or type(error).__name__)
        yield Fetched(entry, data, entry.captions)


def _read_tar(file: str, entries: list[Entry], columns: ColumnConfig) -> Iterator[Fetched]:
    for entry in entries:
        texts = tuple(Member(text["suffix"], text["position"], text["size"]) for text in entry.texts)
        sample = ShardSample(Path(file), entry.key, Member("", entry.position, entry.size), texts)
        captions: list[str] = []
        with contextlib.suppress(UnreadableImage):  # an image without a caption is used all the same
            captions = list(sample.read_captions())
        try:
            yield Fetched(entry, sample.read_bytes(), captions)
        except UnreadableImage as error:
            yield Fetched(entry, UnreadableImage(Path(entry.key), error.reason), captions)


def _find_tables(root: Path) -> list[Path]:
    if root.is_dir():
        return sorted(root.glob(f"*{PARQUET_SUFFIX}"))
    if root.suffix != PARQUET_SUFFIX:
        return []
    from webdataset.shardlists import expand_urls

    found = [path for name in expand_urls(str(root)) for path in _glob(Path(name))]
    if not found or not all(path.is_file() for path in found):
        missing = next((path for path in found if not path.is_file()), root)
        raise HybridTokenizerError(f"input={str(missing)!r} does not exist; check the path or the pattern")
    return found


def _glob(path: Path) -> list[Path]:
    return sorted(_parent(path).glob(str(path.relative_to(_parent(path))))) if "*" in str(path) else [path]


def _list_tables(files: list[Path], base: Path, columns: ColumnConfig) -> Iterator[Entry]:
    for file in files:
        try:
            metadata = pq.ParquetFile(file)
            image_column(metadata.schema_arrow, columns, file)
        except (pa.ArrowInvalid, OSError) as error:
            raise HybridTokenizerError(f"{file} is no complete Parquet file ({error}); write it again") from None
        for row in range(metadata.metadata.num_rows):
            yield Entry(f"{_key(file, base)}/{row}", "parquet", str(file), row, 0, [], [])


def image_column(schema: pa.Schema, columns: ColumnConfig, where: Path) -> str:
    """The name of the column with images: bytes, or the struct of bytes and path that `datasets` writes."""
    held = [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    wanted = columns.image_column
    if (wanted is None and len(held) == 1) or wanted in held:
        return wanted or held[0]
    raise HybridTokenizerError(
        f"{where} has columns with bytes {held} among {schema.names}, columns.image_column={wanted}; name the one with images"
    )


def caption_column(schema: pa.Schema, columns: ColumnConfig, where: Path) -> str | None:
    """The name of the column with captions, where there is one."""
    wanted = columns.caption_column
    if wanted is not None and wanted not in schema.names:
        raise HybridTokenizerError(f"{where} has no column {wanted!r}; columns.caption_column is one of {schema.names}")
    return wanted or next((name for name in CAPTION_COLUMNS if name in schema.names), None)


def _table_rows(table: pa.Table, entries: list[Entry], columns: ColumnConfig, where: Path) -> Iterator[Fetched]:
    """The entries with their images and captions. Row i of the table belongs to entry i."""
    images = table.column(image_column(table.schema, columns, where))
    name = caption_column(table.schema, columns, where)
    texts = table.column(name) if name else itertools.repeat(None, len(entries))
    for entry, image, text in zip(entries, images, texts, strict=True):
        value, listed = image.as_py(), None if text is None else text.as_py()
        if isinstance(value, dict):
            value = value["bytes"]
        if value is None:
            value = UnreadableImage(Path(entry.key), "the row holds no bytes")
        captions = [listed] if isinstance(listed, str) else listed
        texts_of_row = captions if isinstance(captions, list) else []
        yield Fetched(entry, value, [one.strip() for one in texts_of_row if is_text(one) and one.strip()])


def _read_parquet(file: str, entries: list[Entry], columns: ColumnConfig) -> Iterator[Fetched]:
    source = _open_parquet(file)
    schema, path = source.schema_arrow, Path(file)
    names = [name for name in (image_column(schema, columns, path), caption_column(schema, columns, path)) if name]
    first = 0
    for group in range(source.num_row_groups):
        last = first + source.metadata.row_group(group).num_rows
        wanted = [entry for entry in entries if first <= entry.position < last]
        if wanted:
            rows = [entry.position - first for entry in wanted]
            yield from _table_rows(source.read_row_group(group, columns=names).take(rows), wanted, columns, path)
        first = last


@functools.lru_cache(maxsize=4)
def _open_parquet(file: str) -> pq.ParquetFile:
    return pq.ParquetFile(file)


def _list_saved(root: Path, base: Path) -> Iterator[Entry]:
    splits = (
        [root] if (root / SAVED_DATASET).is_file() else sorted(path.parent for path in root.glob(f"*/{SAVED_DATASET}"))
    )
    for split in splits:
        for row in range(len(_open_saved(str(split)))):
            yield Entry(f"{_key(split, base)}/{row}", "saved", str(split), row, 0, [], [])


def _read_saved(file: str, entries: list[Entry], columns: ColumnConfig) -> Iterator[Fetched]:
    table = _open_saved(file).with_format("arrow")[[entry.position for entry in entries]]
    yield from _table_rows(table, entries, columns, Path(file))


@functools.lru_cache(maxsize=4)
def _open_saved(folder: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise HybridTokenizerError(
            f"input={folder!r} is a saved Hugging Face dataset; install the package datasets to read it"
        ) from None
    return datasets.load_from_disk(folder)


READERS: dict[str, Callable[[str, list[Entry], ColumnConfig], Iterator[Fetched]]] = {
    "file": _read_files,
    "tar": _read_tar,
    "parquet": _read_parquet,
    "saved": _read_saved,
}
