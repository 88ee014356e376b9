"""Send abusive requests to the voting app and the demo page on loopback, and write how they responded.

The number of requests and connections and the duration are bounded, and both servers are stopped at the end.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
from PIL import Image

from hybrid_tokenizer.apps.user_study.prepare import StudyOptions, prepare_study
from hybrid_tokenizer.apps.user_study.study import VOTES_NAME
from hybrid_tokenizer.checkpoints.files import write_json
from hybrid_tokenizer.evaluation.controls import Identity, LosslessGuide, Unrelated
from hybrid_tokenizer.provenance import git_revision, machine

ROOT = Path(__file__).resolve().parents[1]
CONNECTIONS = 64
REOPEN_SECONDS = 1.0
HALF_A_HEAD = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"
HALF_A_BODY = b"POST /api/vote HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 999\r\n\r\n{"


class Server:
    """A script that serves, in a process of its own."""

    def __init__(self, *arguments: str | Path):
        command = [sys.executable, *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.link = ""
        while not self.link:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"error: {arguments} ended before it listened; run it by itself to see why")
            self.link = line.removeprefix("listening on ").strip() if line.startswith("listening on ") else ""

    def memory_mb(self) -> float:
        """Resident, now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def on_the_wire(client: httpx2.AsyncClient, method: str, path: str, **options: Any) -> bytes:
    """A request as bytes, made in advance: building 200 per second would slow down the server on the same cores."""
    request = client.build_request(method, path, **options)
    head = f"{method} {request.url.raw_path.decode()} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items()) + "\r\n"
    return head.encode() + request.read()


async def flood(link: str, requests: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Send `requests` in turn at a fixed rate over many connections, whether earlier ones were answered or not."""
    address, statuses = urlsplit(link), Counter()
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def connection() -> None:
        reader = writer = None
        while (request := await waiting.get()) is not None:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(address.hostname, address.port)
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
                statuses[head.split()[1]] += 1
                if "connection: close" in head:
                    writer.close()
                    writer = None
            except (OSError, asyncio.IncompleteReadError) as error:
                statuses[type(error).__name__] += 1
                writer = None
        if writer is not None:
            writer.close()

    connections = [asyncio.create_task(connection()) for _ in range(CONNECTIONS)]
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        waiting.put_nowait(requests[number % len(requests)])
    asked = time.perf_counter() - start
    for _ in connections:
        waiting.put_nowait(None)
    await asyncio.gather(*connections)
    return {
        "requests": sum(statuses.values()),
        "asked_per_second": int(rate * seconds) / asked,
        "answered_per_second": sum(statuses.values()) / (time.perf_counter() - start),
        "answers": dict(statuses.most_common()),
    }


async def hold(link: str, count: int, data: bytes, end: asyncio.Event) -> dict[str, int]:
    """Keep `count` connections open on which nothing follows `data`. A connection that the server closes is opened again."""
    address, dropped = urlsplit(link), 0

    async def connection() -> None:
        nonlocal dropped
        while not end.is_set():
            writer = None
            try:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                writer.write(data)
                reading, ending = asyncio.create_task(reader.read()), asyncio.create_task(end.wait())
                await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
                for task in (reading, ending):
                    task.cancel()
            except OSError:
                pass
            finally:
                if writer is not None:
                    writer.close()
            dropped += not end.is_set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), REOPEN_SECONDS * random.uniform(0.5, 1.5))

    await asyncio.gather(*(connection() for _ in range(count)))
    return {"held": count, "dropped": dropped}


async def probe(client: httpx2.AsyncClient, until: asyncio.Event, fresh: bool = False) -> dict[str, Any]:
    """Request the page every quarter of a second, `fresh`: each time over a new connection."""
    seconds, failures = [], 0
    headers = {"connection": "close"} if fresh else {}
    while not until.is_set():
        start = time.perf_counter()
        try:
            failures += (await client.get("/", headers=headers)).status_code != 200
        except httpx2.HTTPError:
            failures += 1
        seconds.append(time.perf_counter() - start)
        await asyncio.sleep(0.25)
    middle, high = np.quantile(seconds, [0.5, 0.95])
    return {
        "asked": len(seconds),
        "failures": int(failures),
        "seconds_median": float(middle),
        "seconds_95": float(high),
        "seconds_max": max(seconds),
    }


async def honest_rater(client: httpx2.AsyncClient, headers: dict[str, str], sheet: dict[str, Any]) -> dict[str, Any]:
    """Vote on every set as the page does: send a vote again until the server confirms it."""
    confirmed, retries = {}, 0
    for one in sheet["sets"]:
        places = {name: place for place, name in enumerate(one["candidates"], 1)}
        ballot = {"study": sheet["study"], "set": one["id"], "places": places}
        while one["id"] not in confirmed:
            try:
                answer = await client.post("/api/vote", headers=headers, json=ballot)
            except httpx2.HTTPError:
                answer = None
            if answer is not None and answer.status_code == 200:
                confirmed[one["id"]] = places
            else:
                retries += 1
                await asyncio.sleep(0.5)
        await asyncio.sleep(1)
    return {"confirmed": confirmed, "retries": retries}


async def attack_study(server: Server, folder: Path, rate: float, seconds: float) -> dict[str, Any]:
    """A flood of requests of all kinds while one rater votes."""
    async with (
        httpx2.AsyncClient(base_url=server.link, timeout=30) as client,
        httpx2.AsyncClient(base_url=server.link, timeout=30) as quiet,
    ):
        honest, other = [(await quiet.post("/api/join")).json()["code"] for _ in range(2)]
        sheet = (await quiet.get("/api/sheet", headers={"x-participant": honest})).json()
        one = sheet["sets"][0]
        places = dict.fromkeys(one["candidates"], 1)
        ballot = {"study": sheet["study"], "set": one["id"], "places": places}
        requests = [
            on_the_wire(client, "GET", "/"),
            on_the_wire(client, "GET", f"/images/{one['original']}"),
            on_the_wire(client, "POST", "/api/join"),
            on_the_wire(client, "GET", "/api/sheet", headers={"x-participant": "forged2345"}),
            on_the_wire(client, "POST", "/api/vote", headers={"x-participant": "forged2345"}, json=ballot),
            on_the_wire(
                client, "POST", "/api/vote", headers={"x-participant": other}, json=ballot
            ),  # the same each time
            on_the_wire(
                client, "POST", "/api/vote", headers={"x-participant": other}, json={**ballot, "study": "another"}
            ),
            on_the_wire(client, "POST", "/api/vote", content=b"x" * 50_000),
            on_the_wire(client, "GET", "/images/..%2f..%2fstudy.json"),
            on_the_wire(client, "GET", "/static/..%2f..%2f..%2fetc%2fpasswd"),
        ]
        before, done = server.memory_mb(), asyncio.Event()
        probing = asyncio.create_task(probe(quiet, done))
        rating = asyncio.create_task(honest_rater(quiet, {"x-participant": honest}, sheet))
        flooded = await flood(server.link, requests, rate, seconds)
        rated = await rating
        done.set()
        probed = await probing
        alone = [(await client.post("/api/vote", headers={"x-participant": other}, json=ballot)).json().get("new")]
        after = server.memory_mb()
    rows = sqlite3.connect(folder / VOTES_NAME).execute("SELECT code, set_id, places FROM votes").fetchall()
    of_honest = {set_id: json.loads(text) for code, set_id, text in rows if code == honest}
    return {
        "flood": flooded,
        "page": probed,
        "honest_votes_confirmed": len(rated["confirmed"]),
        "honest_votes_lost": sum(of_honest.get(key) != value for key, value in rated["confirmed"].items()),
        "honest_retries": rated["retries"],
        "votes_of_the_repeater": sum(code == other for code, *_ in rows),
        "repeated_once_more_is_new": alone[0],
        "votes_of_others": sum(code not in (honest, other) for code, *_ in rows),
        "memory_mb": {"before": before, "after": after},
    }


async def crowd_study(server: Server, idle: int, half_open: int, seconds: float) -> dict[str, Any]:
    """Silent and half-open connections, and some with half a body, while one rater votes and others open the page."""
    async with httpx2.AsyncClient(base_url=server.link, timeout=30) as client:
        code = (await client.post("/api/join")).json()["code"]
        sheet = (await client.get("/api/sheet", headers={"x-participant": code})).json()
        before, end = server.memory_mb(), asyncio.Event()
        kinds = {"idle": (idle, b""), "half_open": (half_open, HALF_A_HEAD), "half_a_body": (half_open, HALF_A_BODY)}
        holding = [asyncio.create_task(hold(server.link, count, data, end)) for count, data in kinds.values()]
        await asyncio.sleep(1)
        probing = asyncio.create_task(probe(client, end, fresh=True))
        rating = asyncio.create_task(honest_rater(client, {"x-participant": code}, sheet))
        await asyncio.sleep(seconds)
        during = server.memory_mb()
        rated = await rating
        end.set()
        return {
            "connections": dict(zip(kinds, await asyncio.gather(*holding), strict=True)),
            "page": await probing,
            "honest_votes_confirmed": len(rated["confirmed"]),
            "honest_retries": rated["retries"],
            "memory_mb": {"before": before, "during": during},
        }


def bomb(width: int, height: int) -> bytes:
    """A PNG of a kilobyte whose header claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def black(side: int) -> bytes:
    """A valid PNG of one colour: a small file, but side x side x 3 bytes when decoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


async def attack_demo(server: Server, rate: float, seconds: float) -> dict[str, Any]:
    """Bad uploads one at a time, then a flood of them together with valid computations."""
    cases = {
        "over the limit of bytes": ("x.png", b"x" * 9_000_000),
        "far over the limit of bytes": ("x.png", b"x" * 100_000_000),
        "header claims 3.6 gigapixels": ("x.png", bomb(60_000, 60_000)),
        "81 megapixels in 240 kB": ("x.png", black(9000)),
        "cut off": ("x.png", black(100)[:60]),
        "a program for Ghostscript": ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "a path in the name": ("../../../etc/passwd", black(64)),
    }
    async with (
        httpx2.AsyncClient(base_url=server.link, timeout=60) as client,
        httpx2.AsyncClient(base_url=server.link, timeout=60) as quiet,
    ):
        before, answers = server.memory_mb(), {}
        for what, (name, data) in cases.items():
            start = time.perf_counter()
            try:
                answer = await client.post("/api/encode", files={"file": (name, data)})
                said = {"status": answer.status_code, "error": answer.json().get("error")}
            except httpx2.HTTPError as error:  # refused before it was read
                said = {"status": None, "error": type(error).__name__}
            answers[what] = said | {"seconds": time.perf_counter() - start}
        ids = (await quiet.post("/api/encode/cat")).json()["ids"]
        asked = {"ids": ids, "part": "hybrid", "strength": 0.2, "steps": 20, "guidance": 1.0}
        requests = [
            on_the_wire(client, "GET", "/"),
            on_the_wire(client, "GET", "/samples/cat"),
            on_the_wire(client, "POST", "/api/decode", json=asked),
            on_the_wire(client, "POST", "/api/encode", files={"file": ("x.png", bomb(60_000, 60_000))}),
            on_the_wire(client, "POST", "/api/decode", json={**asked, "steps": 10**9}),
        ]
        done = asyncio.Event()
        probing = asyncio.create_task(probe(quiet, done))
        flooded = await flood(server.link, requests, rate, seconds)
        done.set()
        probed = await probing
        start = time.perf_counter()
        after_it = await quiet.post("/api/decode", json=asked)
        return {
            "uploads": answers,
            "flood": flooded,
            "page": probed,
            "decode_afterwards": {"status": after_it.status_code, "seconds": time.perf_counter() - start},
            "memory_mb": {"before": before, "after": server.memory_mb()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "web_abuse.json")
    parser.add_argument("--rate", type=float, default=200, help="requests per second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="duration of each part (%(default)s)")
    parser.add_argument("--idle", type=int, default=500, help="silent connections (%(default)s)")
    parser.add_argument("--half-open", type=int, default=100, help="connections with half a head (%(default)s)")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "revision": git_revision(), "load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        prepare_study(folder, [Identity(), LosslessGuide(64), Unrelated()], StudyOptions(num_sets=7))
        with Server(ROOT / "scripts" / "user_study.py", "serve", folder) as server:
            report["voting_app"] = asyncio.run(attack_study(server, folder, options.rate, options.seconds))
            report["voting_app_connections"] = asyncio.run(
                crowd_study(server, options.idle, options.half_open, options.seconds)
            )
    with Server(ROOT / "scripts" / "demo.py") as server:
        report["demo_page"] = asyncio.run(attack_demo(server, options.rate, options.seconds))
    write_json(options.output, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
