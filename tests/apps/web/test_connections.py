"""Silent, slow and numerous connections: each is closed in time, and none keeps others out."""

import asyncio
import contextlib
import socket
import threading
import time

import httpx2
import pytest

from hybrid_tokenizer.apps.web.connections import Bounds
from hybrid_tokenizer.apps.web.serving import server_of

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LARGE = 32 * 2**20
"""Bytes of a response that no socket buffer holds."""


class Running:
    """A server in a thread. /wait is answered once `release` is set, /large with `LARGE` bytes, /body after its body."""

    def __init__(self, bounds):
        self.release = threading.Event()
        self.server = server_of(self.app, bounds)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.sockets = []

    async def app(self, scope, receive, send):
        if scope["type"] != "http":
            return
        if scope["path"] == "/wait":
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        if scope["path"] == "/body":
            while (await receive()).get("more_body"):
                pass
        body = bytes(LARGE) if scope["path"] == "/large" else b"hello"
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    def open(self, data=b""):
        one = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        self.sockets.append(one)
        one.sendall(data)
        return one

    def status(self):
        """Of a new request."""
        return httpx2.get(f"http://127.0.0.1:{self.port}/", timeout=20).status_code

    def count(self):
        return len(self.server.server_state.connections)

    def stages(self):
        return [stage.name for stage in sorted(one.stage for one in list(self.server.server_state.connections))]

    def wait_for(self, condition, seconds=10):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"still {self.count()} connections"
            time.sleep(0.01)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.release.set()
        for one in self.sockets:
            one.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def is_answered(one):
    """Whether the next response is a whole one."""
    received = b""
    while not received.endswith(b"hello"):
        part = one.recv(1000)
        if not part:
            return False
        received += part
    return received.startswith(b"HTTP/1.1 200")


def is_closed(one):
    """Whether the other side has closed."""
    one.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        return one.recv(100) == b""
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"], ids=["silent", "line", "head"])
def test_a_connection_without_a_whole_head_is_closed_in_time(sent):
    with Running(Bounds(head_seconds=0.3)) as server:
        start = time.monotonic()
        assert is_closed(server.open(sent))
        assert 0.25 < time.monotonic() - start < 5


def test_a_head_that_arrives_byte_by_byte_has_no_more_time_than_another():
    with Running(Bounds(head_seconds=0.4)) as server:
        one, start = server.open(), time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - start < 5:
                one.sendall(b"G")
                time.sleep(0.05)
        assert 0.35 < time.monotonic() - start < 4


def test_a_connection_is_used_again_and_closed_once_it_is_idle():
    with Running(Bounds(head_seconds=1.0)) as server:
        one = server.open()
        for _ in range(5):
            one.sendall(GET)
            assert is_answered(one)
            time.sleep(0.3)  # in all longer than the limit
        start = time.monotonic()
        assert is_closed(one) and time.monotonic() - start < 5


def test_a_request_may_take_longer_than_its_head():
    with Running(Bounds(head_seconds=0.2)) as server:
        one = server.open(GET.replace(b"/ ", b"/wait ", 1))
        time.sleep(0.8)
        assert server.count() == 1
        server.release.set()
        assert is_answered(one)


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"], ids=["keep-alive", "close"])
def test_a_client_that_does_not_read_is_dropped_in_time(close):
    with Running(Bounds(head_seconds=0.2, read_seconds=0.3)) as server:
        one = server.open(b"GET /large HTTP/1.1\r\nhost: x\r\n" + close + b"\r\n")
        one.recv(10)
        server.wait_for(lambda: server.count() == 0)
        received = 10
        with contextlib.suppress(ConnectionResetError):
            while data := one.recv(2**20):
                received += len(data)
        assert received < LARGE


def test_a_client_that_reads_slowly_gets_everything():
    with Running(Bounds(head_seconds=0.2, read_seconds=1.0)) as server:
        one, received = server.open(GET.replace(b"/ ", b"/large ", 1)), 0
        while received < LARGE:
            received += len(one.recv(2**20))
            time.sleep(0.01)


def test_beyond_the_bound_the_connection_that_waited_longest_is_dropped():
    with Running(Bounds(per_address=3)) as server:
        first, second, third = (server.open() for _ in range(3))
        server.wait_for(lambda: server.count() == 3)
        server.open()
        assert is_closed(first) and server.count() == 3
        for one in (second, third):
            one.sendall(GET)
            assert is_answered(one)


def test_silent_connections_are_dropped_first_and_requests_in_progress_never():
    waiting = GET.replace(b"/ ", b"/wait ", 1)
    with Running(Bounds(per_address=5)) as server:
        served = [server.open(waiting) for _ in range(2)]
        sending = server.open(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nunfin")
        kept = server.open(GET)
        assert is_answered(kept)
        silent = server.open()
        server.wait_for(lambda: server.stages() == ["NO_REQUEST", "IDLE", "CLIENT", "SERVED", "SERVED"])
        for dropped in (silent, kept, sending):
            served.append(server.open(waiting))
            assert is_closed(dropped)
            server.wait_for(lambda: server.stages().count("SERVED") == len(served))
        assert server.stages() == ["SERVED"] * 5
        assert is_closed(server.open())  # no room: the newest is refused
        server.release.set()
        assert all(is_answered(one) for one in served)


def test_unfinished_bodies_do_not_take_the_places_of_new_connections():
    body = b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nunfin"
    with Running(Bounds(per_address=8)) as server:
        sending = [server.open(body) for _ in range(8)]
        server.wait_for(lambda: server.stages() == ["CLIENT"] * 8)
        new = [server.open() for _ in range(3)]
        assert all(is_closed(one) for one in sending[:3])
        for one in new:
            one.sendall(GET)
            assert is_answered(one)


def test_the_bound_of_all_connections_holds_as_well():
    with Running(Bounds(per_address=50, connections=5)) as server:
        opened = [server.open() for _ in range(30)]
        assert server.status() == 200
        assert server.count() <= 5
        assert all(is_closed(one) for one in opened[:25])
