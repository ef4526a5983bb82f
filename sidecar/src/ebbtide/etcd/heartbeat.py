"""A lease, and what is known of it: one thread writes under it, another keeps it alive up the watch."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

SLOW_S = 10.0
"""How much later than a beat its answer may come: the relay looks every two seconds, and the store takes its time."""


class Heartbeat:
    """Keep one lease alive: by beats up an open watch where the server takes them, else by requests.

    Whoever writes asks `request_at` when to renew by a request; the watch beats by itself. Safe to use from several
    threads. Periods are chosen anew each time with jitter, so that pods that started together do not beat together.

    Args:
        period_s: Most seconds between two renewals.
        on_ended: Called where the store says that the lease has ended; from the watch's thread.
    """

    def __init__(self, period_s: float, on_ended: Callable[[], None] = lambda: None) -> None:
        self._period_s = period_s
        self._on_ended = on_ended
        self._lock = threading.Lock()
        self._lease = 0
        self._carried = False
        self._renewed_at = 0.0
        self._due_s = 0.0
        self._lost_at = float("-inf")
        self._held_at = float("-inf")

    @property
    def lease(self) -> int:
        """The lease; 0: there is none."""
        return self._lease

    @property
    def request_at(self) -> float:
        """Monotonic time at which to renew by a request: beats that are answered put it off; never without a lease."""
        with self._lock:
            if not self._lease:
                return float("inf")
            if self._carried:
                # Every second beat is answered, some seconds after it came.
                return self._renewed_at + 2.5 * self._period_s
            # A watch that broke is open again in a moment, as a rule, and beats soon.
            return max(self._renewed_at + self._due_s, self._lost_at + self._period_s / 4)

    @property
    def silence_s(self) -> float:
        """Seconds that a watch which takes beats may be silent: two answers that did not come."""
        return 4 * self._period_s + SLOW_S

    def hold(self, lease: int) -> None:
        """Take a lease that was granted or renewed just now; 0: there is none any more."""
        with self._lock:
            self._lease = lease
            self._renew()
            self._held_at = self._renewed_at

    def answered(self, lease: int, *, alive: bool) -> None:
        """Take the answer to a beat."""
        with self._lock:
            if lease != self._lease:
                return
            if alive:
                self._renew()
                return
            self._lease = 0
        self._on_ended()

    def doubts(self, heard_at: float) -> bool:
        """Say whether the store answered a request though a watch, last heard then, owed an answer for long."""
        # An answer is due after two periods, and a sign of life soon after that.
        return self._held_at > heard_at + 2.4 * self._period_s

    def carry(self) -> float:
        """Take note that a watch takes beats from now on; return the seconds until the first."""
        with self._lock:
            self._carried = True
        return random.uniform(0.0, 0.5) * self._period_s  # noqa: S311 (spreads load)

    def lose(self) -> None:
        """Take note that no watch takes beats any more."""
        with self._lock:
            if self._carried:
                self._carried = False
                self._lost_at = time.monotonic()

    def pause_s(self) -> float:
        """Return the seconds until the next beat."""
        return random.uniform(0.8, 1.0) * self._period_s  # noqa: S311 (spreads load)

    def _renew(self) -> None:
        self._renewed_at = time.monotonic()
        self._due_s = self.pause_s()
