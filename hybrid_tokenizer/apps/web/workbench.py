"""One heavy computation at a time, and a short queue before it."""

import threading
from collections.abc import Callable
from typing import TypeVar

from hybrid_tokenizer.apps.web.pages import WebError

T = TypeVar("T")


class Workbench:
    """Runs what it is given one after the other, in the callers' threads; refuses where more than `most_waiting` wait."""

    def __init__(self, most_waiting: int):
        self._places = threading.BoundedSemaphore(most_waiting + 1)
        self._bench = threading.Lock()
        self._most_waiting = most_waiting

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, or WebError 503 at once."""
        if not self._places.acquire(blocking=False):
            raise WebError(503, f"busy: {self._most_waiting} computations are waiting; try again in a few seconds")
        try:
            with self._bench:
                return work()
        finally:
            self._places.release()
