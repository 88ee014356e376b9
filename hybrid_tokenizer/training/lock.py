"""One run per folder: a lock that names its holder, and that the kernel releases when the holder's process ends."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hybrid_tokenizer.errors import HybridTokenizerError, printable
from hybrid_tokenizer.training.state import writing

LOCK_NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder`, which is made. Of a run of several processes only the first takes the lock.

    A lock inside a lock of the same process is the same lock.

    Raises:
        HybridTokenizerError: another process holds the lock, or the folder cannot be written.
    """
    path = folder.resolve() / LOCK_NAME
    if path in _held or os.environ.get("RANK", "0") != "0":
        yield
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115  closed below; opening must not hide errors of the block
    with file:
        _take(file, folder)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


def _take(file: IO[str], folder: Path) -> None:
    try:
        # a lock of this process: unlike flock's, the loader's workers do not inherit it and keep it after a kill
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in TAKEN:
            print(f"{printable(folder)} has no lock ({error.strerror}); do not start a second run in it", flush=True)
            return
        file.seek(0)
        holder = printable(file.read().strip()) or "another process"
        raise HybridTokenizerError(
            f"output_dir={printable(folder)!r} is in use by {holder}; wait until it ends, or give another output_dir"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
