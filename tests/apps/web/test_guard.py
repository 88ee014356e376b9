"""What the guard refuses before an app sees it, and the headers of every answer."""

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from hybrid_tokenizer.apps.web.guard import Access, Limits
from hybrid_tokenizer.apps.web.limits import Rate, TokenBuckets
from hybrid_tokenizer.apps.web.pages import WebError, guarded_app
from hybrid_tokenizer.apps.web.serving import access_for, serve
from hybrid_tokenizer.apps.web.workbench import Workbench
from hybrid_tokenizer.errors import HybridTokenizerError

LIMITS = Limits(body_bytes=100, requests=Rate(1000, 1000), calls=Rate(1000, 1000))


def client_of(tmp_path, limits=LIMITS, access=None, host="127.0.0.1"):
    (tmp_path / "index.html").write_text("<!doctype html>hello")
    app = guarded_app(tmp_path, limits, access or Access())

    @app.post("/api/length")
    async def length(request: Request):
        return {"length": len(await request.body())}

    return TestClient(app, base_url=f"http://{host}:8000", follow_redirects=False)


def test_every_answer_has_the_headers(tmp_path):
    client = client_of(tmp_path)
    answers = [client.get("/"), client.get("/nowhere"), client.post("/api/length", content=b"x" * 101)]
    assert [answer.status_code for answer in answers] == [200, 404, 413]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")


def test_only_files_of_the_page_are_served(tmp_path):
    client = client_of(tmp_path)
    assert client.get("/static/base.css").status_code == 200
    for path in ("/static/..%2f..%2fguard.py", "/static/%2e%2e/guard.py", "/static//etc/passwd", "/static/none.css"):
        answer = client.get(path)
        assert answer.status_code == 404 and "error" in answer.json()


def test_bodies_over_the_limit_never_reach_the_app(tmp_path):
    client = client_of(tmp_path)
    assert client.post("/api/length", content=b"x" * 100).json() == {"length": 100}
    assert client.post("/api/length", content=b"x" * 101).status_code == 413
    in_pieces = (b"x" * 60 for _ in range(2))  # no content-length: counted while it comes
    assert client.post("/api/length", content=in_pieces).status_code == 413
    assert client.post("/api/length", content=b"x" * 100_000).status_code == 413


def test_other_hosts_and_other_pages_are_refused(tmp_path):
    assert client_of(tmp_path, host="evil.example").get("/").status_code == 421
    assert client_of(tmp_path, host="localhost").get("/").status_code == 200
    client = client_of(tmp_path)
    assert client.get("/", headers={"host": "[::1"}).status_code == 421
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
    buckets = TokenBuckets(Rate(2, 3), lambda: now[0], most_keys=2)
    assert [buckets.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.5
    assert buckets.wait("a") == 0 and buckets.wait("a") == 0.5
    for key in ("b", "c"):
        assert buckets.wait(key) == 0
    assert len(buckets._buckets) == 2


def test_workbench_refuses_when_its_queue_is_full():
    bench = Workbench(most_waiting=0)

    def nested() -> None:
        with pytest.raises(WebError, match="busy") as refused:
            bench.run(lambda: None)
        assert refused.value.status == 503

    bench.run(nested)
    with pytest.raises(ZeroDivisionError):
        bench.run(lambda: 1 / 0)
    assert bench.run(lambda: 5) == 5  # a failure leaves its place free


def test_a_port_in_use_is_one_line():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HybridTokenizerError, match="--port"):
        serve(None, "127.0.0.1", taken.getsockname()[1], Access())
