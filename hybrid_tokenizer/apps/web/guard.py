"""Checks before a request reaches the app: rates, the link's token, the origin, and the size of the body."""

import asyncio
import hmac
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers

from hybrid_tokenizer.apps.web.headers import error_response
from hybrid_tokenizer.apps.web.limits import Rate, TokenBuckets

COOKIE = "access_{port}"
"""A browser sends the cookies of a host to all its ports, where a study and the demo may both be running."""
COOKIE_SECONDS = 30 * 24 * 3600
CODE_HEADER = "x-participant"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
ANY_HOST = ("*",)
DRAIN = 8
"""A body over the limit is read and dropped up to this multiple of the limit, so that its sender can read the refusal."""


class Limits(NamedTuple):
    """Limits of one server. Rates are per address, except `known`, which is per existing participant code."""

    body_bytes: int
    body_seconds: float = 20.0
    requests: Rate = Rate(300, 600)
    calls: Rate = Rate(10, 40)
    """Requests to /api/, where the work is done."""
    known: Rate = Rate(20, 60)
    """Calls with an existing code have their own rate: a flood from the same address does not stop a participant."""


@dataclass(frozen=True)
class Access:
    """Who may use a server: on loopback those who call it by a local name, elsewhere those who have the link's token."""

    link_token: str | None = None
    """None asks for no token."""
    hosts: tuple[str, ...] = LOCAL_HOSTS
    """Allowed values of the Host header. They stop pages on the web whose host name was pointed at this machine."""
    is_known: Callable[[str], bool] = field(default=lambda code: False)


class Refused(Exception):
    """The response to a request that does not reach the app."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


# Coroutine functions have no return annotations here: the tests' shape checker would check the coroutine against them.
class Guard:
    """An ASGI middleware. The app behind it gets the whole body as one message."""

    def __init__(self, app: Any, limits: Limits, access: Access):
        self.app, self.limits, self.access = app, limits, access
        self._requests, self._calls, self._known = (
            TokenBuckets(rate) for rate in (limits.requests, limits.calls, limits.known)
        )

    async def __call__(self, scope: Any, receive: Any, send: Any):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            body = await self._read_body(headers, receive)
        except Refused as refused:
            if refused.status in (400, 408, 413):
                refused.headers["connection"] = "close"  # the rest of the body must not be read as the next request
            await error_response(refused.status, refused.message, refused.headers)(scope, receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    def _check(self, scope: Any, headers: Headers) -> None:
        """Everything that can be decided from the first line and the headers."""
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
            if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
                raise Refused(403, f"a page of {origin[:80]!r} may not write here; open this server's own page")

    @staticmethod
    def _admit(buckets: TokenBuckets, key: str) -> None:
        if wait := buckets.wait(key):
            seconds = math.ceil(wait)
            raise Refused(
                429, f"too many requests, over {buckets.rate.per_second:g} per second; wait {seconds} s",
                retry_after=str(seconds),
            )  # fmt: skip

    @staticmethod
    def _check_token(scope: Any, headers: Headers, token: str) -> None:
        """Move the link's token from the address to a cookie, so that reloads work and no screenshot shows the token."""
        name = COOKIE.format(port=scope["server"][1])
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if _equal(given, token):
            # Lax and not Strict: Strict is not sent on the redirect of somebody who clicked the link in a mail
            cookie = f"{name}={token}; HttpOnly; SameSite=Lax; Path=/; Max-Age={COOKIE_SECONDS}"
            raise Refused(303, "go on without the token", location=local_address(scope["path"]), set_cookie=cookie)
        if not any(_equal(value, token) for value in _cookies(headers, name)):
            raise Refused(403, "this page needs the link with its token; ask for the whole link")

    async def _read_body(self, headers: Headers, receive: Any):
        """The whole body. Refused beyond the limit in bytes or seconds."""
        limit, deadline = self.limits.body_bytes, time.monotonic() + self.limits.body_seconds
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            raise Refused(400, f"content-length is {declared[:20]!r}, expected digits; send the length in bytes")
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


def local_address(path: str) -> str:
    """A Location on this server for a decoded path: a browser takes `//name/` and `/\\name/` for another server."""
    return "/" + quote(path.lstrip("/\\"))


def _cookies(headers: Headers, name: str) -> list[str]:
    """All values of a cookie. Others on this host may have set odd cookies, or one of the same name."""
    pairs = (part.partition("=") for line in headers.getlist("cookie") for part in line.split(";"))
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
