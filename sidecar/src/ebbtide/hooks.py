"""Callbacks of the application: run in reverse, each with a time limit, and none stops the others."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

logger = logging.getLogger("ebbtide")

HOOK_S = 5.0
"""Seconds that one hook may take."""

Hook = Callable[[], Awaitable[object] | object]


@dataclass(frozen=True, slots=True)
class HookRecord:
    """How one run of a hook went."""

    name: str
    took_s: float
    error: str | None
    """None where it succeeded."""


class Hooks:
    """Hooks of one occasion.

    Args:
        occasion: For logs and records: `drain`, `exit`.
        limit_s: Seconds that each may take. A plain function is not interrupted: it runs in the loop's thread.
    """

    def __init__(self, occasion: str, limit_s: float = HOOK_S) -> None:
        self._occasion = occasion
        self._limit_s = limit_s
        self._hooks: list[Hook] = []
        self.records: list[HookRecord] = []
        """Of the last run."""
        self.failures = 0
        """Of all runs."""

    def add(self, hook: Hook) -> None:
        self._hooks.append(hook)

    async def run(self) -> None:
        """Run every hook, the last registered first."""
        self.records = []
        for hook in reversed(self._hooks):
            name = getattr(hook, "__qualname__", repr(hook))
            started_at = time.monotonic()
            error = await self._run_one(hook, name)
            self.failures += error is not None
            self.records.append(HookRecord(f"{self._occasion}: {name}", time.monotonic() - started_at, error))

    async def _run_one(self, hook: Hook, name: str) -> str | None:
        try:
            waiting = hook()
            if not inspect.isawaitable(waiting):
                return None
            task = asyncio.ensure_future(waiting)
        except Exception as error:
            logger.exception("ebbtide: the %s hook %s failed", self._occasion, name)
            return repr(error)
        try:
            # Not `wait_for`, which waits without limit for a task that swallows its cancel.
            await asyncio.wait({task}, timeout=self._limit_s)
        finally:
            if not task.done():
                task.cancel(f"the {self._occasion} hook {name} took too long")
                task.add_done_callback(_look)
        if not task.done():
            logger.error("ebbtide: the %s hook %s took longer than %g s", self._occasion, name, self._limit_s)
            return f"took longer than {self._limit_s:g} s"
        if task.cancelled():
            return "cancelled"
        failure = task.exception()
        if failure is not None:
            logger.error("ebbtide: the %s hook %s failed", self._occasion, name, exc_info=failure)
            return repr(failure)
        return None


def _look(task: asyncio.Future[object]) -> None:
    """Take note of a late hook's exception, of which asyncio would complain otherwise."""
    if not task.cancelled():
        task.exception()
