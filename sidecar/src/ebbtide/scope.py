"""Scopes: named places where work is started, which end what they started when they are cancelled."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar

from ebbtide.errors import Refused
from ebbtide.registry import Entry, Registry, current_entry

logger = logging.getLogger("ebbtide")

T = TypeVar("T")
CHUNK = 250
"""Tasks cancelled in one turn of the loop: a hundred thousand at once would stop it for most of a second."""


class Scope:
    """Where work starts. Get one from `Runtime.scope`, and narrower ones from its own `scope`.

    Attributes:
        name: Dotted path from the root.
        timeout_s: Limit for each task; the tightest of the scope, its parents and the call counts. None: no limit.
    """

    def __init__(self, registry: Registry, name: str, timeout_s: float | None, parent: Scope | None = None) -> None:
        self.name = name
        self.timeout_s: float | None = timeout_s if parent is None else _tighter(timeout_s, parent.timeout_s)
        self._registry = registry
        self._parent = parent
        self._children: weakref.WeakSet[Scope] = weakref.WeakSet()
        if parent is not None:
            parent._children.add(self)  # noqa: SLF001 (its own class)

    def scope(self, name: str, *, timeout_s: float | None = None) -> Scope:
        """Return a scope inside this one: cancelled with it, its limit no looser."""
        return Scope(self._registry, f"{self.name}.{name}", timeout_s, self)

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a task that the process waits for when it drains.

        A crash is logged once, with the task's name and metadata, and harms no neighbour. Awaiting the task raises it
        too.

        Args:
            coroutine: What to run; closed where it is not admitted.
            name: For people; the scope and a number where it is None.
            meta: Shown with the task in dumps and logs.
            timeout_s: Seconds after which it is cancelled and ends with TimeoutError.
            context: Its context variables; None: a copy of the caller's.

        Raises:
            Refused: The process drains; tell the caller to go elsewhere.
        """
        try:
            entry = self._registry.admit(self, name, "task", meta)
        except Refused:
            coroutine.close()
            raise
        # Inserted before the task exists: an eager task may have ended before it is returned.
        runner = _run(self._registry, entry, coroutine, _tighter(timeout_s, self.timeout_s))
        task = asyncio.get_running_loop().create_task(runner, name=entry.name, context=context)
        if not task.done():
            entry.task = task
        task.add_done_callback(lambda done: _ended(self._registry, entry, coroutine, done))
        return task

    @contextmanager
    def track(self, name: str | None = None, *, meta: Mapping[str, Any] | None = None) -> Iterator[Entry]:
        """Count the block as work in flight, in the task or the thread that runs it.

        Raises:
            Refused: The process drains, and the block is not a part of work in flight.
        """
        entry = self._registry.admit(self, name, "block", meta)
        try:
            entry.task = asyncio.current_task()
        except RuntimeError:  # no loop in this thread
            entry.task = None
        before = current_entry.get()
        current_entry.set(entry)
        outcome = "finished"
        try:
            yield entry
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except BaseException:
            outcome = "failed"
            raise
        finally:
            # Restored by value: in an async generator the token belongs to another context.
            current_entry.set(before)
            self._registry.end(entry, outcome)

    def cancel(self, reason: str) -> int:
        """Cancel everything that this scope and those inside it started; return how much that is.

        Call it in the loop's own thread. Each task is cancelled once: a second cancel would break its cleanup off.
        """
        mine = self._inside()
        chosen = [entry for entry in self._registry.entries() if entry.scope in mine]
        _cancel_chunk(chosen, reason)
        return len(chosen)

    def _inside(self) -> set[Scope]:
        found = {self}
        for child in list(self._children):
            found |= child._inside()  # noqa: SLF001 (its own class)
        return found


def cancel_all(registry: Registry, loop: asyncio.AbstractEventLoop, reason: str) -> None:
    """Cancel everything in flight, from any thread."""
    chosen = registry.entries()
    call_in(loop, lambda: _cancel_chunk(chosen, reason))


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Call a function in a loop's thread; a loop that is closed has nothing left to call it for."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        logger.debug("ebbtide: the event loop is closed")


def _cancel_chunk(chosen: list[Entry], reason: str) -> None:
    now, later = chosen[:CHUNK], chosen[CHUNK:]
    for entry in now:
        if entry.cancelled_for is None and entry.task is not None and not entry.task.done():
            entry.cancelled_for = reason
            entry.task.cancel(reason)
    if later:
        asyncio.get_running_loop().call_soon(_cancel_chunk, later, reason)


async def _run(registry: Registry, entry: Entry, coroutine: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
    current_entry.set(entry)
    outcome = "failed"
    try:
        if timeout_s is None:
            result = await coroutine
        else:
            limit = asyncio.timeout(timeout_s)
            try:
                async with limit:
                    result = await coroutine
            except TimeoutError:
                # The task's own TimeoutErrors are failures like others.
                if limit.expired():
                    outcome = "timed_out"
                raise
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except Exception as error:
        if outcome == "failed":
            logger.exception("ebbtide: task %s of %s crashed: %r", entry.name, entry.scope.name, entry.meta or {})
        else:
            logger.warning("ebbtide: task %s of %s timed out: %r", entry.name, entry.scope.name, error)
        raise
    else:
        outcome = "finished"
        return result
    finally:
        registry.end(entry, outcome)


def _ended(registry: Registry, entry: Entry, coroutine: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> None:
    # A task that was cancelled before its first step never entered `_run`, and its coroutine never began.
    coroutine.close()
    registry.end(entry, "cancelled")
    if not task.cancelled():
        # Marks the exception as seen: it was logged, and the loop would log it a second time.
        task.exception()


def _tighter(one: float | None, other: float | None) -> float | None:
    limits = [limit for limit in (one, other) if limit is not None]
    return min(limits, default=None)
