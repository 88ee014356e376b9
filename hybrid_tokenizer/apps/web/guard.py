"""What every request passes before the app sees it: host, link token, rates, size of the body; and headers of every answer."""

import asyncio
import hmac
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from hybrid_tokenizer.apps.web.limits import Rate, TokenBuckets

POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
        "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
COOKIE = "access_{port}"
"""Browsers keep one jar for all ports of a host, where a study and the demo may both be open."""
CODE_HEADER = "x-participant"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DRAIN = 8
"""A body over the limit is read and dropped up to so many times the limit, so that its sender can read the refusal."""


class Limits(NamedTuple):
    """Of one server. Rates are an address's, except `known`, which is a participant code's that the app knows."""

    body_bytes: int
    body_seconds: float = 20.0
    requests: Rate = Rate(300, 600)
    calls: Rate = Rate(10, 40)
    """Requests to /api/, where the work is."""
    known: Rate = Rate(20, 60)
    """So that a flood from an address that others share, or with made-up codes, does not keep a participant from voting."""


@dataclass(frozen=True)
class Access:
    """Who may come in: by name on loopback, by the token of the link elsewhere (None asks for none)."""

    link_token: str | None = None
    hosts: tuple[str, ...] | None = LOOPBACK
    """Names that the Host header may have, against pages that point their own name here; None allows all."""
    is_known: Callable[[str], bool] = field(default=lambda code: False)


class Refused(Exception):
    """An answer that the app does not give."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


# Coroutine functions have no return annotations here: the tests' shape checker would check the coroutine against them.
class Guard:
    """An ASGI middleware."""

    def __init__(self, app: Any, limits: Limits, access: Access):
        self.app, self.limits, self.access = app, limits, access
        self._requests, self._calls, self._known = (
            TokenBuckets(rate) for rate in (limits.requests, limits.calls, limits.known)
        )

    async def __call__(self, scope: Any, receive: Any, send: Any):
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Any):
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", [])}
                more = {"cache-control": "no-store", **HEADERS}
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in more.items() if name.encode() not in given),
                ]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
            body = await self._read_body(headers, receive)
        except Refused as refused:
            await _answer(send_with_headers, refused)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send_with_headers)

    def _check(self, scope: Any, headers: dict[str, str]) -> None:
        """Everything that the first line and the headers can tell."""
        host = headers.get("host", "")
        if self.access.hosts is not None and _host_name(host) not in self.access.hosts:
            raise Refused(421, f"host {host[:80]!r} is not this server's name; open the link that it printed")
        address = scope["client"][0] if scope.get("client") else "unknown"
        self._admit(self._requests, address)
        if scope["path"].startswith("/api/"):
            code = headers.get(CODE_HEADER, "")
            known = bool(code) and self.access.is_known(code)
            self._admit(self._known if known else self._calls, code if known else address)
        if self.access.link_token is not None:
            self._check_token(scope, headers, self.access.link_token)
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != host:
                raise Refused(403, f"a page of {origin[:80]} may not write here; open the page of this server")

    @staticmethod
    def _admit(buckets: TokenBuckets, key: str) -> None:
        if wait := buckets.wait(key):
            seconds = math.ceil(wait)
            raise Refused(
                429, f"too many requests, over {buckets.rate.per_second:g} a second; wait {seconds} s", retry_after=str(seconds)
            )  # fmt: skip

    @staticmethod
    def _check_token(scope: Any, headers: dict[str, str], token: str) -> None:
        """The link's token becomes a cookie, and leaves the address, so that reloads work and no screenshot shows it."""
        cookie_name = COOKIE.format(port=scope["server"][1])
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if hmac.compare_digest(given.encode(), token.encode()):
            # Lax and not Strict: Strict is not sent on the redirect of somebody who clicked the link in a mail
            cookie = f"{cookie_name}={token}; HttpOnly; SameSite=Lax; Path=/; Max-Age=2592000"
            raise Refused(303, "go on without the token", location=scope["path"], set_cookie=cookie)
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(cookie_name)
        except CookieError:
            morsel = None
        if morsel is None or not hmac.compare_digest(morsel.value.encode(), token.encode()):
            raise Refused(403, "this page needs the link with its token; ask for the whole link")

    async def _read_body(self, headers: dict[str, str], receive: Any):
        """The whole body, refused once it is over the limit in bytes or seconds."""
        limit, deadline = self.limits.body_bytes, time.monotonic() + self.limits.body_seconds
        declared = headers.get("content-length", "0")
        if not declared.isdigit():
            raise Refused(400, f"content-length {declared[:20]!r} is no number; send the length in bytes")
        too_large = Refused(413, f"the request is over the limit of {limit} bytes; send a smaller one")
        if int(declared) > DRAIN * limit:
            raise too_large
        parts, size, more = [], 0, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise Refused(408, f"the request took over {self.limits.body_seconds:g} s; try again") from None
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request ended early; send it again")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > DRAIN * limit:
                break
            else:
                parts.clear()
        if size > limit:
            raise too_large
        return b"".join(parts)


def _host_name(host: str) -> str | None:
    """Of a Host header, without the port; None where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _answer(send: Any, refused: Refused):
    headers = {"content-type": "application/json"} | {
        name.replace("_", "-"): value for name, value in refused.headers.items()
    }
    body = json.dumps({"error": refused.message}).encode()
    headers["content-length"] = str(len(body))
    if refused.status in (400, 408, 413):
        headers["connection"] = "close"  # what is left of the body must not be read as the next request
    await send(
        {
            "type": "http.response.start",
            "status": refused.status,
            "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
