"""Callbacks of the application: run in reverse, each in its own time within one budget, and none stops the others."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ebbtide.lifecycle.drainreport import HookRecord

logger = logging.getLogger("ebbtide")

HOOK_S = 5.0
"""Seconds that one hook may take."""
LEAST_S = 0.1
"""Seconds that each hook has in any case: a budget that others spent is no reason to leave a connection open."""

Hook = Callable[[], Awaitable[object] | object]


@dataclass(frozen=True, slots=True)
class _Registered:
    """One hook as it was registered."""

    hook: Hook
    name: str
    limit_s: float


class Hooks:
    """Hooks of one occasion.

    Args:
        occasion: For logs and records: `drain`, `exit`.
    """

    def __init__(self, occasion: str) -> None:
        self._occasion = occasion
        self._hooks: list[_Registered] = []
        self.records: list[HookRecord] = []
        """Of the last run."""
        self.failures = 0
        """Of all runs."""

    def add(self, hook: Hook, limit_s: float = HOOK_S, name: str = "") -> None:
        """Register a hook.

        Args:
            hook: A function or a coroutine function.
            limit_s: Seconds that it may take. A plain function is not interrupted: it runs in the loop's thread.
            name: For records; empty: the function's own.

        Raises:
            ValueError: The limit is no positive number.
        """
        name = name or getattr(hook, "__qualname__", repr(hook))
        if not limit_s > 0:
            raise ValueError(f"{self._occasion} hook {name}: timeout_s: must be more than 0 seconds, not {limit_s!r}")
        self._hooks.append(_Registered(hook, name, limit_s))

    @property
    def least_s(self) -> float:
        """Seconds that all of them together have in any case."""
        return LEAST_S * len(self._hooks)

    def remove(self, hook: Hook) -> None:
        """Register a hook no more; nothing happens where it is not."""
        self._hooks = [registered for registered in self._hooks if registered.hook != hook]

    async def run(self, budget_s: float = math.inf) -> None:
        """Run every hook, the last registered first; who cancels this hurries the rest and skips none.

        Args:
            budget_s: Seconds for all of them together.
        """
        from ebbtide.lifecycle.drainreport import HookRecord

        self.records = []
        hurried: asyncio.CancelledError | None = None
        end_at = time.monotonic() + budget_s
        for place in range(len(self._hooks) - 1, -1, -1):
            registered = self._hooks[place]
            started_at = time.monotonic()
            limit_s = allowance_s(registered.limit_s, end_at - started_at, place)
            try:
                error = await self._run_one(registered, limit_s)
            except asyncio.CancelledError as cancelled:
                hurried, end_at, error = cancelled, -math.inf, "cancelled"
            self.failures += error is not None
            took_s = time.monotonic() - started_at
            self.records.append(HookRecord(f"{self._occasion}: {registered.name}", took_s, error))
        if hurried is not None:
            raise hurried

    async def _run_one(self, registered: _Registered, limit_s: float) -> str | None:
        name, started_at = registered.name, time.monotonic()
        try:
            waiting = registered.hook()
            if not inspect.isawaitable(waiting):
                return self._late(name, limit_s) if time.monotonic() - started_at > limit_s else None
            task = asyncio.create_task(_without_exit(waiting))
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # raised by the hook: nothing is awaited here
            logger.exception("ebbtide: the %s hook %s failed", self._occasion, name)
            return repr(error)
        try:
            # Not `wait_for`, which waits without limit for a task that swallows its cancel.
            await asyncio.wait({task}, timeout=limit_s)
        finally:
            if not task.done():
                task.cancel(f"the {self._occasion} hook {name} took too long")
                task.add_done_callback(_look)
        if not task.done():
            return self._late(name, limit_s)
        if task.cancelled():
            return "cancelled"
        failure = task.exception()
        if failure is not None:
            logger.error("ebbtide: the %s hook %s failed", self._occasion, name, exc_info=failure)
            return repr(failure)
        return None

    def _late(self, name: str, limit_s: float) -> str:
        logger.error("ebbtide: the %s hook %s took longer than %.3g s", self._occasion, name, limit_s)
        return f"took longer than {limit_s:.3g} s"


def allowance_s(own_s: float, left_s: float, after: int) -> float:
    """Return how long a hook may take, so that each of those after it still has its least.

    Args:
        own_s: Its own limit, in seconds.
        left_s: What is left of the budget.
        after: How many come after it.
    """
    return min(own_s, max(LEAST_S, left_s - LEAST_S * after))


async def _without_exit(waiting: Awaitable[object]) -> None:
    try:
        await waiting
    except SystemExit as error:
        # In a task it would go through the event loop, and take everything with it.
        raise RuntimeError(f"called sys.exit({error.code!r})") from error


def _look(task: asyncio.Task[None]) -> None:
    """Take note of a late hook's exception, of which asyncio would complain otherwise."""
    if not task.cancelled():
        task.exception()
