"""One unit of work in flight: what is known of it, and how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

from ebbtide.errors import TimedOut
from ebbtide.stacks.frames import all_threads, frames_of_task, frames_of_thread, place_of, stack_of, unbegun

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope

logger = logging.getLogger("ebbtide")

KINDS = ("task", "block", "thread", "process")

current_entry: ContextVar[int] = ContextVar("ebbtide_entry", default=0)
"""Number of the entry that runs here; 0: none.

The number and not the entry: a task that its own context referred to would be left to the garbage collector.
"""


class ManagedTask(asyncio.Task[Any]):
    """A spawned task that is its own entry."""

    __slots__ = ("meta", "number", "scope", "started_at")

    number: int
    scope: Scope
    meta: Mapping[str, Any] | None
    started_at: float

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel as asyncio does; and see to it that the end is counted where `counted` cannot tell."""
        coroutine: Any = self.get_coro()
        if getattr(coroutine, "cr_running", False):
            # By itself, in what may be its last step: its end is to be looked at.
            self.scope.registry.odd.add(self.number)
        elif (given := unbegun(coroutine)) is not None:
            self.add_done_callback(partial(_ended_before_it_began, given))
        return super().cancel(msg)


class Entry:
    """One unit of work in flight that is no managed task: a block, a thread, a child process, or a task made elsewhere.

    Attributes:
        number: Unique in this process, counting up.
        kind: `task`, `block`, `thread` or `process`.
        name: For people.
        meta: What the caller said about it.
        started_at: Monotonic seconds.
        task: What is cancelled for it; None for work in a thread, which cannot be.
        thread: Identity of the thread that it runs in, where that is not a task's; 0: none, or not yet.
        grace_s: Seconds that its last cancel left it for its end; None: it was not cancelled, or for a time limit.
    """

    __slots__ = ("grace_s", "kind", "meta", "name", "number", "scope", "started_at", "task", "thread")

    def __init__(self, number: int, kind: str, name: str, scope: Scope, meta: Mapping[str, Any] | None) -> None:
        self.number = number
        self.kind = kind
        self.name = name
        self.scope = scope
        self.meta = meta
        self.started_at = monotonic()
        self.task: asyncio.Task[Any] | None = None
        self.thread = 0
        self.grace_s: float | None = None


Live = ManagedTask | Entry


def task_here() -> asyncio.Task[Any] | None:
    """Return the task that runs here; None: no task does, or there is no loop in this thread."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def asker(live: Container[int]) -> int:
    """Return the number of the entry that runs here, and asks for something; 0: none.

    Args:
        live: Numbers of what is in flight.
    """
    number = current_entry.get()
    if number and number not in live:
        # Tasks that were given the same context overwrite each other's number there. A task knows its own.
        return getattr(task_here(), "number", number)
    return number


def close_unbegun(coroutine: Any) -> None:
    """Close a coroutine, and what it was given to run: that would warn that nobody ever awaited it.

    Anything else stays as it is: who gave it by mistake still owns it.
    """
    while asyncio.iscoroutine(coroutine):
        given = unbegun(coroutine)
        coroutine.close()
        coroutine = given


def _ended_before_it_began(given: Any, task: asyncio.Task[Any]) -> None:
    assert isinstance(task, ManagedTask)
    close_unbegun(given)
    task.scope.registry.on_task_ended(task)


@dataclass(frozen=True, slots=True)
class EntryView:
    """One unit of work as it was when somebody looked."""

    number: int
    name: str
    kind: str
    scope: str
    meta: Mapping[str, Any] | None
    age_s: float
    state: str
    """`running`, `stale` (its heartbeats are missing), `cancelling` (it was cancelled and has not ended) or `abandoned`
    (nobody waits for it any more)."""
    heartbeat_age_s: float | None
    """Seconds since it last said that it is alive; None where its scope wants no heartbeats."""


def name_of(item: Live) -> str:
    """Return the name of an entry for people: what it was given, or its scope and number."""
    if not isinstance(item, ManagedTask):
        return item.name
    name = item.get_name()
    # Made up when somebody asks: for most tasks nobody does.
    return f"{name}-{item.number}" if name == item.scope.name else name


def task_of(item: Live) -> asyncio.Task[Any] | None:
    """Return the task that an entry is or runs in; None for one in a thread."""
    return item if isinstance(item, ManagedTask) else item.task


def kind_of(item: Live) -> str:
    """Return one of `KINDS`."""
    return "task" if isinstance(item, ManagedTask) else item.kind


def frames_of(item: Live, threads: Mapping[int, FrameType]) -> list[FrameType]:
    """Return the frames of an entry, the outermost first; `threads`: the innermost frames of all threads."""
    task = task_of(item)
    if task is not None:
        return frames_of_task(task)
    return frames_of_thread(threads.get(item.thread)) if isinstance(item, Entry) else []


def where(item: Live) -> str:
    """Return the place where an entry is, for people."""
    return place_of(stack_of(frames_of(item, {} if task_of(item) is not None else all_threads())))


def error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """Return what a task that is done raised; this also tells asyncio that somebody looked at it."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def outcome_of(error: BaseException | None, item: Live) -> str:
    """Say how an entry ended whose task raised this, and log what went wrong: the only place that does, so once."""
    if error is None:
        return "finished"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, TimedOut):
        logger.warning(
            "ebbtide: %s %s of %s timed out: %r", kind_of(item), name_of(item), item.scope.name, item.meta or {}
        )
        return "timed_out"
    log_crash(item, error)
    return "failed"


def log_crash(item: Live, error: BaseException, then: str = "") -> None:
    """Log a crash with the metadata of what crashed; `then`: what comes of it."""
    logger.error(
        "ebbtide: %s %s of %s crashed%s: %r",
        kind_of(item),
        name_of(item),
        item.scope.name,
        then,
        item.meta or {},
        exc_info=error,
    )
