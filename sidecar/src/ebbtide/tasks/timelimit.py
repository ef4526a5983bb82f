"""The time limit of one task: cancelled once, given its grace, and then no longer waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from time import monotonic
from typing import Any, TypeVar

from ebbtide.errors import TimedOut
from ebbtide.tasks.entries import name_of, task_of
from ebbtide.tasks.protection import cancel_softly
from ebbtide.tasks.registry import Registry

T = TypeVar("T")

logger = logging.getLogger("ebbtide")


class TimeLimit:
    """How long one entry may take.

    Args:
        registry: Where it is.
        number: Of the entry.
        timeout_s: Seconds from its first step on.
    """

    __slots__ = ("_delivered", "_number", "_registry", "_task", "_timer", "timeout_s")

    def __init__(self, registry: Registry, number: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._registry = registry
        self._number = number
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._delivered = False

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine within the limit.

        Raises:
            TimedOut: It was cancelled for the limit, and for nothing else.
        """
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = task.get_loop().call_later(self.timeout_s, self._expire)
        try:
            result = await coroutine
        except asyncio.CancelledError as error:
            if not self._delivered:
                raise
            self._delivered = False
            if task.uncancel() > 0:
                raise  # somebody else wants it to end as well, and counts on being obeyed
            raise TimedOut(self._name(), self.timeout_s) from error
        finally:
            self._timer.cancel()
            # The task refers to this coroutine, which would refer to the task.
            self._task = None
            if self._delivered:
                # Whatever it made of the cancel: what runs next in this task was not asked to end.
                task.uncancel()
        if self._delivered:
            logger.warning(
                "ebbtide: task %s swallowed the cancel at its time limit of %g s and finished",
                self._name(),
                self.timeout_s,
            )
        return result

    def _expire(self) -> None:
        task, item = self._task, self._registry.live.get(self._number)
        if task is None or task.done():
            return
        grace_s = self._registry.grace_s
        self._timer = task.get_loop().call_later(grace_s, self._give_up)
        if self._registry.marks.lately(task):
            return  # it is on its way out already: a second cancel would break its cleanup off
        if item is not None:
            self._registry.mark_cancelled(task)
        cancel_softly(task, self._deliver, grace_s)

    def _deliver(self) -> None:
        if self._task is not None and not self._task.done():
            self._delivered = True
            self._task.cancel(f"took longer than {self.timeout_s:g} s")

    def _give_up(self) -> None:
        task, item = self._task, self._registry.live.get(self._number)
        if task is None or item is None or task.done():
            return
        item.scope.gate.gave_up(item.number, monotonic())
        # With the blocks that it is in: they are not waited for either.
        mine = [entry for entry in self._registry.entries() if task_of(entry) is task]
        self._registry.abandon(mine, f"did not end within {self._registry.grace_s:g} s after the time limit")

    def _name(self) -> str:
        item = self._registry.live.get(self._number)
        return "?" if item is None else name_of(item)
