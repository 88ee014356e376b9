"""Token buckets: how many requests a key may make, in memory that does not grow with the number of keys."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

MOST_KEYS = 10_000


class Rate(NamedTuple):
    """`burst` requests at once, then `per_second`."""

    per_second: float
    burst: int


class TokenBuckets:
    """One bucket a key, full at first. The keys that were silent for longest are forgotten beyond `most_keys`."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic, most_keys: int = MOST_KEYS):
        self.rate, self._clock, self._most_keys = rate, clock, most_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> tokens left, when

    def wait(self, key: str) -> float:
        """Take a token: 0 when there was one, otherwise the seconds until there is one, and none is taken."""
        now = self._clock()
        left, then = self._buckets.pop(key, (float(self.rate.burst), now))
        left = min(float(self.rate.burst), left + (now - then) * self.rate.per_second)
        admitted = left >= 1
        self._buckets[key] = (left - 1 if admitted else left, now)
        if len(self._buckets) > self._most_keys:
            self._buckets.popitem(last=False)
        return 0.0 if admitted else (1 - left) / self.rate.per_second
