"""A soft shield: what must not be broken off asks for a little time, and gets it within the budget."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ebbtide.tasks.entries import task_here

logger = logging.getLogger("ebbtide")

SHARE = 0.5
"""Of the grace after a cancel, how much may pass before a protected task gets it: cleanup needs the rest."""

_protecting: dict[asyncio.Task[Any], list[protect]] = {}
"""The blocks that protect each task, the latest last. They may end in any order: those of async generators do."""


class protect:  # noqa: N801 (used like a function)
    """Delay a cancel of this task while a `with` block runs.

    Cancels by this library (drain, time limit, `Scope.cancel`) wait until the block ends, at most so many seconds from
    when they come, and at most half the grace that the task would have had. Then the task is cancelled in the block. A
    cancel by others is not delayed. In a thread without a loop nothing can cancel the block, and nothing is done.

    Args:
        seconds: How long a cancel may wait.

    Raises:
        ValueError: `seconds` is negative.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds: must be 0 or more, not {seconds!r}")
        self._seconds = seconds
        self._task: asyncio.Task[Any] | None = None
        self._deliver: Callable[[], None] | None = None
        self._due: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._task = task_here()
        if self._task is not None:
            _protecting.setdefault(self._task, []).append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None:
            return
        others = _protecting[self._task]
        others.remove(self)
        if not others:
            del _protecting[self._task]
        deliver, due = self._deliver, self._due
        if deliver is None or due is None:
            return
        left_s = due.when() - self._task.get_loop().time()
        due.cancel()
        self._deliver = None
        if others and left_s > 0:
            others[-1].hold(deliver, left_s)
        else:
            deliver()

    @property
    def holds(self) -> bool:
        """Whether a cancel waits for the end of the block."""
        return self._deliver is not None

    def hold(self, deliver: Callable[[], None], most_s: float) -> None:
        """Keep a cancel back; in the thread of the task's loop."""
        if self._deliver is not None or self._task is None:
            return
        self._deliver = deliver
        self._due = self._task.get_loop().call_later(min(self._seconds, most_s), self._give_up)

    def _give_up(self) -> None:
        deliver, self._deliver = self._deliver, None
        if deliver is not None and self._task is not None:
            logger.warning("ebbtide: task %s is cancelled where it is protected: time is over", self._task.get_name())
            deliver()


def cancel_softly(task: asyncio.Task[Any], deliver: Callable[[], None], grace_s: float) -> None:
    """Cancel a task, or where it protects itself, do so later; in the thread of its loop.

    Args:
        task: Whose cancel it is.
        deliver: Cancels it.
        grace_s: Seconds that the task has for its end, protection included.
    """
    protections = _protecting.get(task)
    if protections is None:
        deliver()
    else:
        protections[-1].hold(deliver, grace_s * SHARE)


def is_protected(task: asyncio.Task[Any]) -> bool:
    """Say whether a task protects itself now."""
    return task in _protecting


def is_held_back(task: asyncio.Task[Any]) -> bool:
    """Say whether a task protects itself from a cancel that is yet to come."""
    return any(protection.holds for protection in _protecting.get(task, ()))
