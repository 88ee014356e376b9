"""Each failure of the hub's client, raised by a replaced function of it, as one sentence with its remedy."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from hybrid_tokenizer.checkpoints import hub
from hybrid_tokenizer.errors import HybridTokenizerError


def answer(kind, message, status=404):
    """An error that carries the hub's answer, with a message of several lines as the hub's client writes it."""
    response = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind(f"{message}\n\nsecond line", response=response)


def caused(error, cause):
    error.__cause__ = cause
    return error


OFFLINE = errors.OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.")
NOT_CACHED = "An error happened while trying to locate the files on the Hub.\nsecond line"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
COPY = "give the path of a downloaded copy"
FAILURES = {
    "gated": (
        answer(errors.GatedRepoError, "403 Client Error."),
        f"it is gated; accept its terms on its page on the hub, then {LOG_IN}",
    ),
    "disabled": (answer(errors.DisabledRepoError, "403 Client Error."), f"the hub has disabled it; {COPY}"),
    "revision": (
        answer(errors.RevisionNotFoundError, "404 Client Error."),
        "it has no revision 'v9'; give a branch, a tag or a commit of it",
    ),
    "offline": (
        caused(errors.LocalEntryNotFoundError(NOT_CACHED), OFFLINE),
        f"HF_HUB_OFFLINE is set, and it is not in the local cache; unset HF_HUB_OFFLINE, or {COPY}",
    ),
    "offline upload": (
        OFFLINE,
        f"HF_HUB_OFFLINE is set, and it is not in the local cache; unset HF_HUB_OFFLINE, or {COPY}",
    ),
    "no connection": (
        caused(errors.LocalEntryNotFoundError(NOT_CACHED), errors.HTTPError("Name or service not known")),
        "the hub cannot be reached (Name or service not known), and it is not in the local cache; check the connection, "
        f"or {COPY}",
    ),
    "repository": (
        answer(errors.RepositoryNotFoundError, "401 Client Error.", 401),
        f"there is no such repository, or it is private; check the id, or {LOG_IN}",
    ),
    "id": (
        errors.HFValidationError("Repo id must use alphanumeric chars: 'a b/c'."),
        "'owner/name' is no hub id (Repo id must use alphanumeric chars: 'a b/c'); give owner/name",
    ),
    "token": (errors.LocalTokenNotFoundError("Token is required"), f"there is no token; {LOG_IN}"),
    "refused": (
        answer(errors.HfHubHTTPError, "403 Forbidden: write access.", 403),
        f"the hub refuses access (403 Forbidden: write access); {LOG_IN}, with a token that has this right",
    ),
    "too often": (
        answer(errors.HfHubHTTPError, "429 Too Many Requests", 429),
        f"the hub is asked too often (429 Too Many Requests); wait some minutes, or {LOG_IN}",
    ),
    "down": (
        answer(errors.HfHubHTTPError, "503 Service Unavailable", 503),
        f"the hub has a fault of its own (503 Service Unavailable); try again later, or {COPY}",
    ),
    "bad request": (
        answer(errors.BadRequestError, "400 Bad Request", 400),
        "the hub refuses the request (400 Bad Request); check the id",
    ),
    "transport": (
        errors.HTTPError("[Errno -2] Name or service not known"),
        f"the hub cannot be reached ([Errno -2] Name or service not known); check the connection, or {COPY}",
    ),
    "reset": (
        ConnectionResetError(104, "Connection reset by peer"),
        f"the hub cannot be reached ([Errno 104] Connection reset by peer); check the connection, or {COPY}",
    ),
    "disk": (
        OSError(28, "No space left on device"),
        "its files cannot be read or stored here ([Errno 28] No space left on device); check the disk, or move the cache "
        "by HF_HOME",
    ),
}


def replace(monkeypatch, **functions):
    for name, function in functions.items():
        monkeypatch.setattr(huggingface_hub, name, function)


def raising(error):
    def function(*arguments, **options):
        raise error

    return function


@pytest.mark.parametrize(("error", "message"), FAILURES.values(), ids=FAILURES)
def test_a_snapshot_that_cannot_be_had(error, message, monkeypatch):
    replace(monkeypatch, snapshot_download=raising(error))
    with pytest.raises(HybridTokenizerError) as caught:
        hub.snapshot("owner/name", revision="v9")
    assert str(caught.value) == f"owner/name is no folder here and cannot be fetched from the hub: {message}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        *FAILURES.values(),
        (answer(errors.RemoteEntryNotFoundError, "404"), "the repository has no w.pt; check the name and the revision"),
        (errors.EntryNotFoundError("404"), "the repository has no w.pt; check the name and the revision"),
    ],
)
def test_a_file_that_cannot_be_had(error, message, monkeypatch):
    replace(monkeypatch, hf_hub_download=raising(error))
    with pytest.raises(HybridTokenizerError) as caught:
        hub.file("owner/name", "w.pt", revision="v9")
    assert str(caught.value) == f"owner/name/w.pt cannot be fetched from the hub: {message}"


@pytest.mark.parametrize("kind", ["refused", "repository", "transport", "id", "token"])
def test_an_upload_that_fails(kind, tmp_path, monkeypatch):
    error, message = FAILURES[kind]
    replace(monkeypatch, HfApi=lambda token: SimpleNamespace(create_repo=raising(error)))
    with pytest.raises(HybridTokenizerError) as caught:
        hub.upload("owner/name", tmp_path)
    assert str(caught.value) == f"cannot upload to 'owner/name': {message}"


def test_an_error_that_is_no_failure_of_the_hub_stays_what_it_is(monkeypatch):
    replace(monkeypatch, snapshot_download=raising(TypeError("a mistake of ours")))
    with pytest.raises(TypeError, match="a mistake of ours"):
        hub.snapshot("owner/name")


def test_what_is_asked_of_the_client(tmp_path, monkeypatch):
    asked = []

    def download(*arguments, **options):
        asked.append((arguments, options))
        return str(tmp_path)

    def upload_folder(**options):
        asked.append(options)

    api = SimpleNamespace(create_repo=download, upload_folder=upload_folder)
    replace(monkeypatch, snapshot_download=download, hf_hub_download=download, HfApi=lambda token: api)
    (tmp_path / "inner").mkdir()
    options = {"revision": "v2", "token": "secret"}
    assert hub.snapshot("owner/name") == tmp_path
    assert hub.folder("owner/name", subfolder="inner", patterns=["*.json"], **options) == tmp_path / "inner"
    assert hub.file("owner/name", "w.pt", **options) == tmp_path
    hub.upload("owner/name", tmp_path, private=True, token="secret")
    assert asked == [
        (("owner/name",), {"revision": None, "token": None, "allow_patterns": None}),
        (("owner/name",), {"allow_patterns": ["inner/*.json"], **options}),
        (("owner/name", "w.pt"), options),
        (("owner/name",), {"private": True, "exist_ok": True}),
        {"repo_id": "owner/name", "folder_path": tmp_path},
    ]


def test_a_folder_here_needs_no_hub(tmp_path, monkeypatch):
    replace(monkeypatch, snapshot_download=raising(AssertionError("the hub was asked")))
    (tmp_path / "inner").mkdir()
    assert hub.folder(tmp_path) == tmp_path and hub.folder(str(tmp_path), subfolder="inner") == tmp_path / "inner"
    with pytest.raises(HybridTokenizerError, match=r"^revision='v2' is for hub ids, .* is local; leave revision out$"):
        hub.folder(tmp_path, revision="v2")
    with pytest.raises(HybridTokenizerError, match=r"has no folder 'outer'; check subfolder$"):
        hub.folder(tmp_path, subfolder="outer")
    with pytest.raises(
        HybridTokenizerError, match=r"^nowhere does not exist; give a guide, or a hub id like owner/name$"
    ):
        hub.folder("nowhere", expected="a guide")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("a/b", True), ("a", False), ("a/b/c", False), ("./a", False), ("~/a", False), ("/a", False), ("a/", False)],
)
def test_what_reads_as_a_hub_id(source, expected):
    assert hub.is_hub_id(source) is expected
