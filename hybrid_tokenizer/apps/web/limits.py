"""Token buckets: how many requests per second a client may make.

The package `limits` was tried and not used: its memory storage keeps an entry for every key (the moving window for ever),
and it reads the wall clock, so a clock that is set back locks clients out.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

MAX_KEYS = 10_000


class Rate(NamedTuple):
    """`burst` requests at once, then `per_second`."""

    per_second: float
    burst: int


class TokenBuckets:
    """One bucket per key, full at first. Beyond `max_keys`, the key that has been unused for longest is forgotten."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic, max_keys: int = MAX_KEYS):
        self.rate, self._clock, self._max_keys = rate, clock, max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> tokens left, time of last use

    def wait(self, key: str) -> float:
        """Take a token and return 0, or return the seconds until there is one without taking any."""
        now = self._clock()
        left, then = self._buckets.pop(key, (float(self.rate.burst), now))
        left = min(float(self.rate.burst), left + (now - then) * self.rate.per_second)
        admitted = left >= 1
        self._buckets[key] = (left - 1 if admitted else left, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return 0.0 if admitted else (1 - left) / self.rate.per_second
