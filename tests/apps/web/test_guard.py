"""Requests that are refused before the app sees them, and the headers of every response."""

import asyncio

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from hybrid_tokenizer.apps.web.guard import Access, Guard, Limits, Refused, local_address
from hybrid_tokenizer.apps.web.limits import Rate, TokenBuckets
from hybrid_tokenizer.apps.web.pages import WebError, guarded_app
from hybrid_tokenizer.apps.web.serving import access_for, serve
from hybrid_tokenizer.apps.web.work_queue import WorkQueue
from hybrid_tokenizer.errors import HybridTokenizerError

LIMITS = Limits(body_bytes=100, requests=Rate(1000, 1000), calls=Rate(1000, 1000))


def client_of(tmp_path, limits=LIMITS, access=None, host="127.0.0.1"):
    (tmp_path / "index.html").write_text("<!doctype html>hello")
    app = guarded_app(tmp_path, limits, access or Access())

    @app.post("/api/length")
    async def length(request: Request):
        return {"length": len(await request.body())}

    @app.get("/broken")
    def broken():
        raise ZeroDivisionError("a secret\nof the server")

    return TestClient(app, base_url=f"http://{host}:8000", follow_redirects=False, raise_server_exceptions=False)


def test_every_response_has_the_headers(tmp_path):
    client = client_of(tmp_path)
    responses = [
        client.get("/"),
        client.get("/nowhere"),
        client.post("/api/length", content=b"x" * 101),
        client.get("/", headers={"host": "evil.example"}),
        client.get("/broken"),
    ]
    assert [response.status_code for response in responses] == [200, 404, 413, 400, 500]
    for response in responses:
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] in ("no-store", "no-cache")
    assert "secret" not in responses[-1].text and "try again" in responses[-1].json()["error"]


def test_only_files_of_the_page_are_served(tmp_path):
    client = client_of(tmp_path)
    assert client.get("/static/base.css").status_code == 200
    for path in ("/static/..%2f..%2fguard.py", "/static/%2e%2e/guard.py", "/static//etc/passwd", "/static/none.css"):
        response = client.get(path)
        assert response.status_code == 404 and "error" in response.json()


@pytest.mark.parametrize("path", ["/static/base.css/", "//evil.example/", "//evil.example/static/base.css/", "/?x=1/"])
def test_no_path_is_redirected(tmp_path, path):
    response = client_of(tmp_path).get(f"http://127.0.0.1:8000{path}")
    assert response.status_code in (200, 404) and "location" not in response.headers


def test_control_characters_in_a_path_stay_in_one_line(tmp_path):
    response = client_of(tmp_path).get("/%0d%0aset-cookie:a=b%1b%00")
    assert response.status_code == 404 and "set-cookie" not in response.headers
    assert response.json()["error"].isprintable()


def test_bodies_over_the_limit_never_reach_the_app(tmp_path):
    client = client_of(tmp_path)
    assert client.post("/api/length", content=b"x" * 100).json() == {"length": 100}
    assert client.post("/api/length", content=b"x" * 101).status_code == 413
    in_pieces = (b"x" * 60 for _ in range(2))  # no content-length: counted while it comes
    assert client.post("/api/length", content=in_pieces).status_code == 413
    assert client.post("/api/length", content=b"x" * 100_000).status_code == 413


def test_other_hosts_and_other_pages_are_refused(tmp_path):
    client = client_of(tmp_path)
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "[::1",
        "",
        "localhost evil.example",
    ):
        assert client.get("/", headers={"host": host}).status_code == 400
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/", headers={"host": host}).status_code == 200
    assert client.post("/api/length", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/length", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


def test_open_to_others_needs_the_token(tmp_path):
    access = access_for("0.0.0.0", "right")
    client = client_of(tmp_path, access=access, host="study.example")
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    assert client.get("/", headers={"cookie": "access_8000=wrong"}).status_code == 403
    entered = client.get("/?token=right")
    assert entered.status_code == 303 and entered.headers["location"] == "/"
    assert "HttpOnly" in entered.headers["set-cookie"] and "SameSite=Lax" in entered.headers["set-cookie"]
    assert client.get("/").status_code == 200  # the cookie from now on
    assert access_for("127.0.0.1").link_token is None
    assert len(access_for("0.0.0.0").link_token) >= 20


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/", "/"),
        ("/results", "/results"),
        ("//evil.example/x", "/evil.example/x"),
        ("///evil.example", "/evil.example"),
        ("/%2f/evil.example", "/evil.example"),
        ("/%5cevil.example", "/evil.example"),
        ("/%09/evil.example", "/%09/evil.example"),
        ("/%0d%0aset-cookie:a=b", "/%0D%0Aset-cookie%3Aa%3Db"),
        ("/a%0d%0a%0d%0a<script>", "/a%0D%0A%0D%0A%3Cscript%3E"),
        ("/%c3%a9%ff", "/%C3%A9%EF%BF%BD"),
    ],
)
def test_the_redirect_after_the_token_stays_on_this_server(tmp_path, path, location):
    client = client_of(tmp_path, access=access_for("0.0.0.0", "right"), host="study.example")
    entered = client.get(f"http://study.example:8000{path}?token=right")
    assert entered.status_code == 303 and entered.headers["location"] == location
    assert entered.headers.get_list("set-cookie")[1:] == []


def test_any_text_gives_a_location_on_this_server():
    for path in (
        "",
        "/",
        "\\\\evil",
        "/\\/evil",
        "http://evil.example",
        "javascript:alert(1)",
        "/a?b#c",
        "/\u2028\x85\x7f",
    ):
        location = local_address(path)
        assert location.startswith("/") and location[1:2] not in ("/", "\\")
        assert location.isascii() and location.isprintable() and not set(location) & set(" ?#:")


@pytest.mark.parametrize(
    "cookie",
    [
        'preferences={"theme":"dark"}; access_8000=right',
        "access_8000=wrong; access_8000=right",  # a page of the same host may set a cookie of any name
        "access_8000=right; access_8000=wrong",
        "=; ;;x; access_8001=right;access_8000=right",
        "name with spaces=\xe9\xff; access_8000=right",
    ],
)
def test_cookies_of_others_do_not_hide_the_token(tmp_path, cookie):
    client = client_of(tmp_path, access=access_for("0.0.0.0", "right"), host="study.example")
    assert client.get("/", headers={"cookie": cookie.encode("latin-1")}).status_code == 200
    wrong = cookie.replace("8000=right", "8000=wrong").encode("latin-1")
    assert client.get("/", headers={"cookie": wrong}).status_code == 403


def test_a_length_that_only_looks_like_digits_is_refused(tmp_path):
    client = client_of(tmp_path)
    for length in (b"\xb2", b"-1", b"0x10", b"1_0", b"1 1"):
        response = client.post("/api/length", headers={b"content-length": length}, content=iter(()))
        assert response.status_code == 400 and "expected digits" in response.json()["error"]


def test_a_body_that_never_ends_is_refused_in_time():
    async def silence():
        await asyncio.sleep(60)

    guard = Guard(None, LIMITS._replace(body_seconds=0.05), Access())
    with pytest.raises(Refused, match=r"0\.05 s") as refused:
        asyncio.run(guard._read_body({}, silence))
    assert refused.value.status == 408


def test_rates_by_address_and_by_known_code(tmp_path):
    limits = LIMITS._replace(calls=Rate(0.001, 2), known=Rate(0.001, 3))
    client = client_of(tmp_path, limits, Access(is_known=lambda code: code == "known"))
    statuses = [client.post("/api/length", headers={"x-participant": f"forged{i}"}).status_code for i in range(4)]
    assert statuses == [200, 200, 429, 429]
    answer = client.post("/api/length")
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    known = [client.post("/api/length", headers={"x-participant": "known"}).status_code for _ in range(4)]
    assert known == [200, 200, 200, 429]
    assert client.get("/").status_code == 200


def test_buckets_refill_and_forget():
    now = [0.0]
    buckets = TokenBuckets(Rate(2, 3), lambda: now[0], max_keys=2)
    assert [buckets.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.5
    assert buckets.wait("a") == 0 and buckets.wait("a") == 0.5
    for key in ("b", "c"):
        assert buckets.wait(key) == 0
    assert len(buckets._buckets) == 2


def test_the_work_queue_refuses_when_it_is_full():
    queue = WorkQueue(max_waiting=0)

    def nested() -> None:
        with pytest.raises(WebError, match="busy") as refused:
            queue.run(lambda: None)
        assert refused.value.status == 503

    queue.run(nested)
    with pytest.raises(ZeroDivisionError):
        queue.run(lambda: 1 / 0)
    assert queue.run(lambda: 5) == 5  # a failure leaves its place free


def test_a_port_in_use_is_one_line():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HybridTokenizerError, match="--port"):
        serve(None, "127.0.0.1", taken.getsockname()[1], Access())
