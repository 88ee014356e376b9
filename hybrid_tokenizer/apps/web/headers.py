"""Security headers of every response, also of those to requests that failed or were refused."""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse

POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
        "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'",
    )
)  # fmt: skip
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """One line of JSON, whatever the message quotes from the request."""
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


# Coroutine functions have no return annotations here: the tests' shape checker would check the coroutine against them.
class SecurityHeaders:
    """An ASGI middleware, the outermost one. It keeps a header that the app has set itself, such as cache-control."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Any):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:  # every failure is answered with the headers and raised again: nothing is swallowed
            if not started:
                failed = error_response(500, "the server failed on this request; its console shows why; try again")
                await failed(scope, receive, send_with_headers)
            raise  # to the log
