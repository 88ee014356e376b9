"""A folder on any file system that pyarrow or fsspec knows. Files appear under their names whole, or not at all."""

import json
import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from hybrid_tokenizer.errors import HybridTokenizerError


class Folder(NamedTuple):
    """A place on a file system; it can be sent to Ray's workers."""

    filesystem: fs.FileSystem
    path: str

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.filesystem, f"{self.path}/{name}")

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        return self.filesystem.get_file_info(f"{self.path}/{name}").type == fs.FileType.File

    def files(self) -> dict[str, int]:
        """Names and sizes of the files here, subfolders left out; nothing where there is no such folder."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}

    def folders(self) -> set[str]:
        """Names of the subfolders."""
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name for info in found if info.type == fs.FileType.Directory}

    def remove(self) -> None:
        """The folder and what is in it, where it is there."""
        if self.filesystem.get_file_info(self.path).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.path)

    def open(self, name: str) -> pa.NativeFile:
        """For reading at any place."""
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def read_json(self, name: str) -> Any:
        """JSON of a file, with an error that names the file."""
        where = f"{self.path}/{name}"
        try:
            with self.filesystem.open_input_stream(where) as stream:
                return json.loads(stream.read())
        except FileNotFoundError:
            raise HybridTokenizerError(f"{where} does not exist; is {self.path} the right folder?") from None
        except (ValueError, RecursionError) as error:
            raise HybridTokenizerError(f"{where} is not valid JSON ({error}); write it again") from None

    def write_json(self, name: str, value: Any) -> int:
        """Returns the bytes written."""
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        return self._write(name, lambda stream: stream.write(text.encode()))

    def write_table(self, name: str, table: pa.Table, rows_per_group: int | None = None) -> int:
        """As Parquet, compressed with zstd. Returns the bytes written."""
        return self._write(
            name, lambda stream: pq.write_table(table, stream, row_group_size=rows_per_group, compression="zstd")
        )

    def _write(self, name: str, write: Any) -> int:
        """Under a temporary name that no reader takes for a file, then renamed."""
        self.filesystem.create_dir(self.path, recursive=True)
        temporary, final = f"{self.path}/.{name}.{uuid.uuid4().hex}.tmp", f"{self.path}/{name}"
        with self.filesystem.open_output_stream(temporary) as stream:
            write(stream)
            size = stream.tell()
        if isinstance(self.filesystem, fs.LocalFileSystem):
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        self.filesystem.move(temporary, final)
        return size


def open_folder(location: str | os.PathLike[str]) -> Folder:
    """A local path, or a URI that pyarrow or fsspec knows. The folder need not exist."""
    text = os.fspath(location)
    if "://" not in text:
        return Folder(fs.LocalFileSystem(), str(Path(text).absolute()))
    try:
        filesystem, path = fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec

        try:
            known, path = fsspec.core.url_to_fs(text)
        except (ValueError, ImportError) as error:
            raise HybridTokenizerError(
                f"{text!r} cannot be opened ({error}); give a local path or a known URI"
            ) from None
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(known))
    return Folder(filesystem, path.rstrip("/"))
