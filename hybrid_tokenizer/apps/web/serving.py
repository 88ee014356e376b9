"""Listening: on loopback by default, elsewhere behind a link with a token."""

import contextlib
import math
import secrets
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from hybrid_tokenizer.apps.web.connections import BoundedProtocol, Bounds
from hybrid_tokenizer.apps.web.guard import ANY_HOST, Access
from hybrid_tokenizer.errors import HybridTokenizerError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BOUNDS = Bounds()
BACKLOG = 100
"""Connections that the system keeps until the server accepts them; so many are accepted at once."""
SHUTDOWN_SECONDS = 5
"""For requests in progress when the server is stopped."""


def access_for(
    host: str, link_token: str | None = None, is_known: Callable[[str], bool] = lambda code: False
) -> Access:
    """On loopback no token is needed; elsewhere `link_token`, or a new one."""
    if host in LOOPBACK:
        return Access(is_known=is_known)
    return Access(link_token or secrets.token_urlsafe(16), hosts=ANY_HOST, is_known=is_known)


def serve(app: Any, host: str, port: int, access: Access, owners: tuple[str, str] | None = None) -> None:
    """Serve until a signal stops it. Port 0 takes a free port; the link is printed once the server listens.

    Args:
        owners: path and token of a page for whoever starts the server. The token stands in the link's fragment, which a
            browser does not send, and which no log of a proxy has.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise HybridTokenizerError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another port with --port"
        ) from None
    name = f"[{host}]" if ":" in host else host
    link = f"http://{name}:{listener.getsockname()[1]}/"
    query = "" if access.link_token is None else f"?token={access.link_token}"
    if query:
        print(f"open to other machines: replace {host} by this machine's name and pass on the whole link")
    print(f"listening on {link}{query}", flush=True)
    if owners is not None:
        path, token = owners
        print(f"for you alone: {link}{path}{query}#{token}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is the usual way to stop a server
        server_of(app).run(sockets=[listener])


def server_of(app: Any, bounds: Bounds = BOUNDS) -> uvicorn.Server:
    """A server with bounded connections, not yet running."""
    return uvicorn.Server(
        uvicorn.Config(
            app, interface="asgi3", http=partial(BoundedProtocol, bounds), ws="none", loop="asyncio",
            log_level="warning", access_log=False, server_header=False, h11_max_incomplete_event_size=16_384,
            timeout_keep_alive=math.ceil(bounds.head_seconds), timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            backlog=BACKLOG,
            limit_concurrency=2 * bounds.connections,  # for requests whose clients left while they were computed
            proxy_headers=False,  # or any local process could choose an address, and with it a rate of its own
        )
    )  # fmt: skip
