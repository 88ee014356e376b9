"""Bounds on a server's connections, so that silent or slow clients cannot keep the others out.

uvicorn's own settings do not suffice: it waits without limit for a first request, for the end of a request's head and for
a client that does not read its response, and beyond `limit_concurrency` connections it refuses everybody.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

from uvicorn.protocols.http.h11_impl import H11Protocol


class Bounds(NamedTuple):
    """Bounds on one server's connections."""

    head_seconds: float = 10.0
    """For the whole head of a request to arrive, counted from the opening of the connection or the last response."""
    read_seconds: float = 60.0
    """For a client to read a response."""
    connections: int = 600
    """With the `serving.BACKLOG` that is accepted at once, this fits the usual limit of 1024 open files."""
    per_address: int = 400
    """Raters behind one router or proxy share an address."""


class Stage(IntEnum):
    """What a connection is doing. Of equally frequent stages the lower is dropped first."""

    NO_REQUEST = 0
    """No head of a request has arrived, or the connection is closing."""
    IDLE = 1
    """Kept open after a response."""
    CLIENT = 2
    """The client is sending a body or reading a response."""
    SERVED = 3
    """The app is working on a request. Such a connection is never dropped."""


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with time limits, and with room for a new connection at any time.

    Beyond the bounds a connection is dropped: of the most frequent stage, the one that has waited longest. So neither
    silent connections nor unfinished bodies can take the places of the others.
    """

    def __init__(self, bounds: Bounds, **options: Any):
        super().__init__(**options)
        self.bounds = bounds
        self.waiting_since = 0.0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()
        neighbours = [one for one in self.connections if one.address == self.address]
        self._make_room(neighbours, self.bounds.per_address)
        self._make_room(list(self.connections), self.bounds.connections)

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel("head")
        self._cancel("read")
        super().connection_lost(error)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel("read")

    @property
    def address(self) -> str | None:
        """The client's address, without the port."""
        return self.client[0] if self.client else None

    @property
    def stage(self) -> Stage:
        """What the connection is doing."""
        if self.transport.is_closing() or self.cycle is None:
            return Stage.NO_REQUEST
        if self.cycle.response_complete:
            return Stage.IDLE
        return Stage.CLIENT if self.cycle.more_body or self.flow.write_paused else Stage.SERVED

    def drop(self) -> None:
        """Close at once, without sending what is left."""
        self.connections.discard(self)  # connection_lost does it too, but only after the next connection was counted
        self.transport.abort()

    def _await_head(self) -> None:
        self.waiting_since = self.loop.time()
        self._after(self.bounds.head_seconds, "head", self._close_without_head)

    def _close_without_head(self) -> None:
        if self.stage <= Stage.IDLE:
            self._await_reader()
            self.transport.close()  # sends what is left first

    def _await_reader(self) -> None:
        self._after(self.bounds.read_seconds, "read", self.transport.abort)

    def _after(self, seconds: float, name: str, action: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self.loop.call_later(seconds, action)

    def _cancel(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _make_room(self, competing: list["BoundedProtocol"], bound: int) -> None:
        if len(competing) <= bound:
            return
        frequency = Counter(one.stage for one in competing)
        droppable = [one for one in competing if one is not self and one.stage < Stage.SERVED]
        min(droppable, key=lambda one: (-frequency[one.stage], one.stage, one.waiting_since), default=self).drop()
