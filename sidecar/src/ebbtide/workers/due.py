"""What a worker does when its pod is drained, or at a time at the latest, whoever leads by then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("ebbtide")

Action = Callable[[], None]


class Due:
    """Actions that wait for their time; from any thread. What fails is logged and keeps nothing else from being done.

    They are carried out in the threads that hear of the other workers: one that died of an action would hear no more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._actions: list[tuple[float, Action]] = []

    def add(self, until: float, action: Action) -> None:
        """Take note of what is due at `until` (monotonic seconds) at the latest."""
        with self._lock:
            self._actions.append((until, action))

    def next_at(self) -> float:
        """Return when the next one is due, in monotonic seconds; infinity: there is none."""
        with self._lock:
            return min((until for until, _ in self._actions), default=float("inf"))

    def carry_out(self, now: float) -> None:
        """Do, once, what is due by `now` (monotonic seconds; infinity: all of it)."""
        with self._lock:
            actions = [action for until, action in self._actions if now >= until]
            self._actions = [item for item in self._actions if now < item[0]]
        for action in actions:
            try:
                action()
            except Exception:
                logger.exception("ebbtide: what a worker does at the end of a drain failed")
