"""Which tasks were asked to end, and when: a second cancel would break off the cleanup that the first one asked for."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from ebbtide.tasks.entries import Live, task_of
from ebbtide.tasks.protection import is_held_back


class Marks:
    """When tasks were asked to end, in monotonic seconds.

    By task and not by entry: what is cancelled is a task, which may be in blocks of several scopes, and begin new ones
    while it cleans up.

    Args:
        grace_s: Seconds that cancelled work has for its cleanup.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        # Weak: a task that is no entry itself, and has blocks only, tells nobody that it has ended.
        self._asked_at: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._asked_at)

    def put(self, task: asyncio.Task[Any]) -> None:
        """Remember that a task is asked to end, now."""
        self._asked_at[task] = monotonic()

    def forget(self, task: asyncio.Task[Any]) -> None:
        """Forget that a task was asked to end: it has, or it begins anew."""
        self._asked_at.pop(task, None)

    def lately(self, task: asyncio.Task[Any] | None) -> bool:
        """Say whether a task was asked to end and may still be cleaning up.

        It may not where it took the cancel back (`asyncio.Task.uncancel`), and so goes on.
        """
        asked_at = self._pending_since(task)
        return asked_at is not None and monotonic() - asked_at < self._grace_s

    def asked_at(self, item: Live) -> float | None:
        """Return when an entry was asked to end; None: it was not, such as a block that began after that."""
        asked_at = self._pending_since(task_of(item))
        return None if asked_at is None or asked_at < item.started_at else asked_at

    def _pending_since(self, task: asyncio.Task[Any] | None) -> float | None:
        asked_at = None if task is None else self._asked_at.get(task)
        if task is None or asked_at is None:
            return None
        # What protects itself may have its cancel yet to come.
        return asked_at if task.cancelling() > 0 or is_held_back(task) else None
