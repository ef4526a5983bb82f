"""How much one caller may ask for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class TokenBuckets(Generic[Key]):
    """One token bucket for each caller, for the callers seen last.

    A caller that drops out of sight comes back with a full bucket: that takes more callers than `most`, each of which
    had to be let in first.

    Args:
        rate: Tokens per second that a bucket gets.
        burst: Tokens that it holds.
        clock: Monotonic seconds.
        most: Callers to remember.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float], most: int = 20_000) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[Key, _Bucket] = OrderedDict()

    def has(self, key: Key) -> bool:
        """Say whether there is a token to take."""
        return self._bucket(key).tokens >= 1

    def take(self, key: Key) -> bool:
        """Take a token; False: there is none."""
        bucket = self._bucket(key)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _bucket(self, key: Key) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(key, _Bucket(self._burst, now))
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        return bucket
