"""Damaged uploads and odd requests to the demo and the voting app: an answer below 500 in one line, whatever was sent."""

import json
import random
import string
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_pictures
from apps.user_study.small_study import write_small_study
from fastapi.testclient import TestClient
from fuzz_bytes import DAMAGES
from fuzz_driver import Attempt, Door
from fuzz_texts import ODD_VALUES, odd_text
from helpers.small_models import small_hybrid

from hybrid_tokenizer.apps.demo import app as demo
from hybrid_tokenizer.apps.demo.pictures import DemoTokenizer
from hybrid_tokenizer.apps.user_study import app as study_app
from hybrid_tokenizer.apps.user_study.votes import Votes
from hybrid_tokenizer.apps.web.guard import CODE_HEADER, Access
from hybrid_tokenizer.apps.web.limits import Rate

FREE = {"requests": Rate(1e6, 10**6), "calls": Rate(1e6, 10**6), "known": Rate(1e6, 10**6)}
HOST = "http://127.0.0.1"
ODD_TEXTS = [
    "", "/", "//evil.example/", "..", "%2e%2e", "\\", "é", "x" * 3000, "\x01", "%00", "%0d%0aset-cookie:a=b", "?", "#", "%", "null",
]  # fmt: skip


class Server(NamedTuple):
    client: TestClient
    files: dict[str, bytes]
    """Pictures to upload."""
    asked: dict[str, Any]
    """A request's body that is answered with 200."""


def answered(label: str, response: Any) -> Attempt:
    """The attempt, once the answer is one."""
    assert response.status_code < 500, f"{response.status_code}: {response.text[:200]}"
    assert all(value.isprintable() for value in response.headers.values())
    assert not response.headers.get("location", "/").startswith(("//", "/\\", "http"))
    if response.status_code >= 400 and response.request.method != "HEAD":
        is_json = response.headers.get("content-type") == "application/json"  # not where the host is another's
        reason = response.json()["error"] if is_json else response.text
        assert "\n" not in reason and "Traceback" not in reason and len(reason) < 2000
    return Attempt(label, response.status_code >= 400)


def odd_request(client: TestClient, paths: list[str], draw: random.Random) -> Any:
    """Any method at any path, with odd headers, queries and bodies."""
    path = draw.choice(paths) + draw.choice(["", "", *ODD_TEXTS])
    query = draw.choice(["", "", f"?code={draw.choice(ODD_TEXTS)}", f"?token={draw.choice(ODD_TEXTS)}"])
    names = ["content-type", "content-length", "origin", "host", "cookie", "range", CODE_HEADER, "accept"]
    values = ["", "1", "-1", "9" * 30, "application/json", "multipart/form-data", "multipart/form-data; boundary=x", "a=b; c", "bytes=0-", "http://evil.example", "127.0.0.1", "\xe9"]  # fmt: skip
    headers = [(draw.choice(names).encode(), draw.choice(values).encode("latin-1")) for _ in range(draw.randrange(4))]
    body = draw.choice([b"", b"--x\r\n", draw.randbytes(draw.randrange(300)), b'{"a":' * 2000])
    method = draw.choice(["GET", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
    url = "".join(letter for letter in path + query if letter in string.printable and letter >= " ")
    return client.request(method, HOST + url, headers=headers, content=body, follow_redirects=False)


def demo_server(folder: Path) -> Server:
    files = {name: data for name, data in fuzz_pictures.encodings(folder).items() if name in ("png", "jpg", "webp", "gif")}  # fmt: skip
    client = TestClient(
        demo.demo_app(DemoTokenizer(small_hybrid()), Access(), demo.LIMITS._replace(**FREE)), base_url=HOST
    )
    encoded = client.post("/api/encode", files={"file": ("picture", files["png"])}).json()
    return Server(
        client, files, {"ids": encoded["ids"], "part": "hybrid", "strength": 0.1, "steps": 2, "guidance": 1.0}
    )


def demo_requests(server: Server, draw: random.Random, folder: Path) -> Attempt:
    """An upload in its form, a decoding, or anything at all."""
    kind = draw.choice(["upload", "form", "decode", "decode", "request"])
    if kind == "upload":
        name = draw.choice(sorted(server.files))
        damaged = DAMAGES[draw.choice(sorted(DAMAGES))](server.files[name], draw)
        form = {
            draw.choice(["file", "file", "file", "", "x"]): (
                draw.choice(ODD_TEXTS),
                damaged,
                draw.choice(["image/png", "", "x/y"]),
            )
        }
        return answered(kind, server.client.post("/api/encode", files=form))
    if kind == "form":
        body = (
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + server.files["gif"]
            + b"\r\n--x--\r\n"
        )
        damaged = DAMAGES[draw.choice(sorted(DAMAGES))](body, draw)
        content_type = draw.choice(
            ["multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary="]
        )
        return answered(
            kind, server.client.post("/api/encode", content=damaged, headers={"content-type": content_type})
        )
    if kind == "decode":
        damage, body = _odd_decoding(server.asked, draw)
        response = server.client.post("/api/decode", content=body, headers={"content-type": "application/json"})
        return answered(f"{kind} {damage}", response)
    return answered(
        kind, odd_request(server.client, ["/", "/api/encode", "/api/decode", "/samples/cat", "/api/tokenizer"], draw)
    )


def _odd_decoding(asked: dict[str, Any], draw: random.Random) -> tuple[str, bytes]:
    if draw.random() < 0.5:
        return odd_text(asked, draw)
    key = draw.choice(sorted(asked))
    numbers = [0, 1, -1, 1.5, 1e30, 10**30, 2**31, True, "1", float("nan"), float("inf")]
    if key == "ids":
        ids = list(asked["ids"])
        for _ in range(draw.choice([1, 1, 5])):
            ids[draw.randrange(len(ids))] = draw.choice([*numbers, 20, 49, 69, 70])
        return "odd_ids", json.dumps(asked | {"ids": draw.choice([ids, ids[:-1], ids + ids, ids[:33]])}).encode()
    return "odd_option", json.dumps(asked | {key: draw.choice([*numbers, *ODD_VALUES])}).encode()


class Study(NamedTuple):
    client: TestClient
    code: str
    votes: list[dict[str, Any]]
    """Bodies of votes that are valid."""


def study_server(folder: Path) -> Study:
    study = write_small_study(folder / "study")
    votes = Votes(folder / "votes.sqlite", study.id)
    limits = study_app.LIMITS._replace(**FREE)
    app = study_app.voting_app(folder / "study", study, votes, Access(is_known=votes.is_known), limits)
    client = TestClient(app, base_url=HOST)
    code = client.post("/api/join").json()["code"]
    sets = client.get("/api/sheet", headers={CODE_HEADER: code}).json()["sets"]
    bodies = [{"study": study.id, "set": one["id"], "places": dict.fromkeys(one["candidates"], 1)} for one in sets]
    return Study(client, code, bodies)


def study_requests(study: Study, draw: random.Random, folder: Path) -> Attempt:
    """A vote that is odd somewhere, or anything at all."""
    if draw.random() < 0.3:
        return answered(
            "request", odd_request(study.client, ["/", "/api/join", "/api/sheet", "/api/vote", "/images/x"], draw)
        )
    damage, body = odd_text(draw.choice(study.votes), draw)
    code = study.code if draw.random() < 0.9 else draw.choice([text for text in ODD_TEXTS if text.isascii()])
    response = study.client.post(
        "/api/vote", content=body, headers={"content-type": "application/json", CODE_HEADER: code}
    )
    return answered(f"vote {damage}", response)


DOORS = [
    Door("demo requests", demo_server, demo_requests, share=1.3),
    Door("study requests", study_server, study_requests, share=1.3),
]
