"""The only client of the Hugging Face hub. Each way in which the hub can fail becomes one sentence with its remedy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hybrid_tokenizer.errors import HybridTokenizerError, first_line

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
LOCAL_COPY = "give the path of a downloaded copy"
FOREIGN_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Of weights files."""
HUB = "hub"
"""Given in place of a path: where the weights were published."""


class Source(NamedTuple):
    """A file of a hub repository, or of a site that this client does not fetch from: `repository` is then its address."""

    repository: str
    file: str

    @property
    def on_hub(self) -> bool:
        """Whether it can be downloaded here."""
        return "://" not in self.repository


def is_hub_id(source: str | Path) -> bool:
    """Whether `source` reads as `owner/name` and not as a path or the name of a weights file."""
    if isinstance(source, Path) or source.startswith((".", "~")) or source.endswith(FOREIGN_SUFFIXES):
        return False
    owner, _, name = source.partition("/")
    return bool(owner and name) and "/" not in name


def folder(
    source: str | Path,
    *,
    expected: str = "a folder",
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    patterns: Sequence[str] | None = None,
) -> Path:
    """`source` itself where it is a folder here, else the snapshot of that hub id; `subfolder` inside it.

    `expected` says in the error what the caller reads. `patterns` are those of the files that a snapshot needs.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise HybridTokenizerError(f"revision={revision!r} is for hub ids, {source} is local; leave revision out")
        home = Path(source)
    elif is_hub_id(source):
        home = snapshot(str(source), revision=revision, token=token, patterns=patterns, subfolder=subfolder)
    else:
        raise HybridTokenizerError(f"{source} does not exist; give {expected}, or a hub id like owner/name")
    found = home / (subfolder or "")
    if not found.is_dir():
        raise HybridTokenizerError(f"{source} has no folder {subfolder!r}; check subfolder")
    return found


def snapshot(
    source: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    patterns: Sequence[str] | None = None,
    subfolder: str | None = None,
) -> Path:
    """The folder of the hub repository `source` at `revision`, downloaded once. `patterns` count from `subfolder`."""
    import huggingface_hub

    if subfolder:
        patterns = [f"{subfolder}/{pattern}" for pattern in patterns or ["*"]]
    with explained(f"{source} is no folder here and cannot be fetched from the hub", source, revision):
        return Path(
            huggingface_hub.snapshot_download(
                source, revision=revision, token=token, allow_patterns=None if patterns is None else list(patterns)
            )
        )


def file(repository: str, name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """One file of a hub repository, downloaded once."""
    import huggingface_hub

    with explained(f"{repository}/{name} cannot be fetched from the hub", repository, revision, name):
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, token=token))


def find_file(what: str, path: str | Path, sources: Sequence[Source]) -> Path:
    """The weights file of `what`, which was published at `sources`.

    `path` is the file, a folder that holds it under its published name or as safetensors, a hub id, or `hub` for the first
    of `sources` that is on the hub.
    """
    local = Path(path)
    if local.is_file():
        return local
    wanted = list(dict.fromkeys(source.file for source in sources))
    if local.is_dir():
        for name in (*wanted, *(str(Path(name).with_suffix(".safetensors")) for name in wanted)):
            if (local / name).is_file():
                return local / name
        raise HybridTokenizerError(f"{path} has no {' or '.join(wanted)}; give the file of {what} itself")
    if path != HUB and not is_hub_id(path):
        raise HybridTokenizerError(
            f"{path} does not exist; give {' or '.join(wanted)} of {what}, its folder, a hub id like owner/name, or {HUB}"
        )
    return file(*(published_source(what, sources) if path == HUB else (str(path), sources[0].file)))


def published_source(what: str, sources: Sequence[Source]) -> Source:
    """The first source that is on the hub; raises where there is none."""
    for source in sources:
        if source.on_hub:
            return source
    raise HybridTokenizerError(
        f"{what} is on no hub; download {sources[0].file} from {sources[0].repository} and give its path"
    )


def upload(repository: str, folder: Path, *, private: bool = False, token: str | None = None) -> None:
    """A folder's files to the hub repository, which is created if need be."""
    import huggingface_hub

    with explained(f"cannot upload to {repository!r}", repository):
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)


@contextmanager
def explained(what: str, repository: str, revision: str | None = None, name: str | None = None) -> Iterator[None]:
    """Turn whatever the hub's client raises into `what: reason; remedy`."""
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    try:
        yield
    # HTTPError is the HTTP library's own base class: the client lets errors of the connection through as they are
    except (EntryNotFoundError, HTTPError, OSError, ValueError) as error:
        raise HybridTokenizerError(f"{what}: {reason_and_remedy(error, repository, revision, name)}") from None


def reason_and_remedy(error: Exception, repository: str, revision: str | None, name: str | None) -> str:
    """The most special cause first: most of these classes are subclasses of others here, and of OSError."""
    from huggingface_hub import errors

    offline = errors.OfflineModeIsEnabled
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated; accept its terms on its page on the hub, then {LOG_IN}"
    if isinstance(error, errors.DisabledRepoError):
        return f"the hub has disabled it; {LOCAL_COPY}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; give a branch, a tag or a commit of it"
    if isinstance(error, offline) or isinstance(error.__cause__, offline):
        return f"HF_HUB_OFFLINE is set, and it is not in the local cache; unset HF_HUB_OFFLINE, or {LOCAL_COPY}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = first_line(error.__cause__ or error)
        return f"the hub cannot be reached ({cause}), and it is not in the local cache; check the connection, or {LOCAL_COPY}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no {name or 'such file'}; check the name and the revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private; check the id, or {LOG_IN}"
    if isinstance(error, errors.HFValidationError):
        return f"{repository!r} is no hub id ({first_line(error)}); give owner/name"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"there is no token; {LOG_IN}"
    if isinstance(error, errors.HfHubHTTPError):
        return status_and_remedy(error.response.status_code, first_line(error))
    if isinstance(error, (errors.HTTPError, ConnectionError, TimeoutError)):
        return f"the hub cannot be reached ({first_line(error)}); check the connection, or {LOCAL_COPY}"
    if isinstance(error, OSError):
        return f"its files cannot be read or stored here ({first_line(error)}); check the disk, or move the cache by HF_HOME"
    return f"{first_line(error)}; check the arguments"


def status_and_remedy(status: int, line: str) -> str:
    """Of an answer that the client has no class of its own for."""
    if status in (401, 403):
        return f"the hub refuses access ({line}); {LOG_IN}, with a token that has this right"
    if status == 429:
        return f"the hub is asked too often ({line}); wait some minutes, or {LOG_IN}"
    if status >= 500:
        return f"the hub has a fault of its own ({line}); try again later, or {LOCAL_COPY}"
    return f"the hub refuses the request ({line}); check the id"
