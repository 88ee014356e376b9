"""Heavy computations: one at a time, with a bounded queue."""

import threading
from collections.abc import Callable
from typing import TypeVar

from hybrid_tokenizer.apps.web.pages import WebError

T = TypeVar("T")


class WorkQueue:
    """Runs computations one after another in the callers' threads; refuses a call if `max_waiting` calls already wait."""

    def __init__(self, max_waiting: int):
        self._places = threading.BoundedSemaphore(max_waiting + 1)
        self._running = threading.Lock()
        self._max_waiting = max_waiting

    def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. Raises WebError 503 at once if the queue is full."""
        if not self._places.acquire(blocking=False):
            raise WebError(503, f"busy: {self._max_waiting} computations are waiting; try again in a few seconds")
        try:
            with self._running:
                return work()
        finally:
            self._places.release()
