"""Listening: on loopback by default, behind a link with a token elsewhere."""

import secrets
import socket
from collections.abc import Callable
from typing import Any

from hybrid_tokenizer.apps.web.guard import LOOPBACK, Access
from hybrid_tokenizer.errors import HybridTokenizerError

MOST_CONNECTIONS = 128


def access_for(
    host: str, link_token: str | None = None, is_known: Callable[[str], bool] = lambda code: False
) -> Access:
    """On loopback by name and without a token, elsewhere with one (`link_token`, or a new one)."""
    if host in LOOPBACK:
        return Access(is_known=is_known)
    return Access(link_token or secrets.token_urlsafe(16), hosts=None, is_known=is_known)


def serve(app: Any, host: str, port: int, access: Access) -> None:
    """Until a signal ends it. Port 0 takes a free one; the link is printed once the server listens."""
    import uvicorn

    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
        )
    except OSError as error:
        raise HybridTokenizerError(
            f"can not listen on {host} port {port} ({error.strerror}); choose another with --port"
        ) from None
    name = f"[{host}]" if ":" in host else host
    link = f"http://{name}:{listener.getsockname()[1]}/"
    if access.link_token is not None:
        link += f"?token={access.link_token}"
        print(f"open to others: put this machine's name in place of {host} and hand out the whole link")
    print(f"listening on {link}", flush=True)
    config = uvicorn.Config(
        app, interface="asgi3", log_level="warning", access_log=False, server_header=False, timeout_keep_alive=10,
        limit_concurrency=MOST_CONNECTIONS, h11_max_incomplete_event_size=16_384, ws="none", http="h11", loop="asyncio",
        proxy_headers=False,  # or anybody on this machine could name an address of his own, and its rate
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
