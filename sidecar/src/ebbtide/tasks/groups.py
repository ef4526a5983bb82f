"""Structured groups: asyncio's own, with children that are work in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ebbtide.errors import Refused
from ebbtide.tasks.entries import Entry, close_unbegun, error_of, outcome_of
from ebbtide.tasks.limits import tighter
from ebbtide.tasks.protection import cancel_softly, is_protected
from ebbtide.tasks.starting import start_entry

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope

T = TypeVar("T")


class Group(asyncio.TaskGroup):
    """An `asyncio.TaskGroup` whose children are work in flight; get one from `Scope.group`.

    Everything that `asyncio.TaskGroup` promises holds. Only the cancel of a child by its group is softer: one that was
    cancelled already has its grace first, and `ebbtide.protect` delays it.
    """

    def __init__(self, scope: Scope, name: str | None, timeout_s: float | None) -> None:
        super().__init__()
        self._scope = scope
        self._name = name or scope.name
        self._limit_s = tighter(timeout_s, scope.timeout_s)
        self._entries: dict[asyncio.Task[Any], Entry] = {}

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a child, in the thread of the group's loop: from the body, from another child, or from elsewhere.

        A crash is logged once, with the child's name and metadata, and is the group's: the scope's `on_crash` has no
        part in it.

        Args:
            coroutine: What to run; closed where it is not started.
            name: For people; None: the group's and a number.
            meta: Shown with the task in dumps and logs.
            timeout_s: Seconds after which it is cancelled and fails with `TimedOut`.
            context: Its context variables; None: a copy of the caller's.

        Raises:
            Refused: As for `Scope.spawn`. The group goes on, unless its body lets this out.
            RuntimeError: The group has not begun, is being cancelled, or has ended.
            TypeError: `coroutine` is none.
        """
        return self._start(coroutine, name, meta, timeout_s, context, {})

    def create_task(  # type: ignore[override] # asyncio takes bare generators too, which no task can run
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None, **options: Any
    ) -> asyncio.Task[T]:
        """Start a child like `spawn`: for code that knows `asyncio.TaskGroup`.

        Args:
            coro: As for `spawn`.
            name: As for `spawn`.
            context: As for `spawn`.
            options: What `asyncio.TaskGroup.create_task` knows besides: from Python 3.14 on `eager_start`.
        """
        return self._start(coro, name, None, None, context, options)

    def _start(
        self,
        coroutine: Coroutine[Any, Any, T],
        name: str | None,
        meta: Mapping[str, Any] | None,
        timeout_s: float | None,
        context: Context | None,
        options: Mapping[str, Any],
    ) -> asyncio.Task[T]:
        """Start a child, with options for who makes tasks here."""
        try:
            factory = asyncio.get_running_loop().get_task_factory()
            number = self._scope.enter()
        except (Refused, RuntimeError):
            close_unbegun(coroutine)
            raise
        entry = Entry(number, "task", name or f"{self._name}-{number}", self._scope, meta)
        limit_s = tighter(timeout_s, self._limit_s)
        if context is None:
            context = copy_context()
        make = partial(super().create_task, name=entry.name, **options)
        # Not every task factory knows the argument `context`; without it a task copies the one it is made in. asyncio's
        # own is told, since who starts eagerly enters the context for that, which nobody may be in then.
        make = partial(context.run, make) if factory else partial(make, context=context)
        task = start_entry(entry, coroutine, limit_s, context, make, partial(self._ended, entry))
        entry.task = task
        self._entries[task] = entry
        return task

    def _ended(self, entry: Entry, task: asyncio.Task[Any]) -> None:
        del self._entries[task]
        entry.scope.end(entry, outcome_of(error_of(task), entry))
        entry.task = None

    def _abort(self) -> None:
        """Cancel the children: asyncio's own step (3.11 to 3.14), which leaves out who must not be cancelled now."""
        registry, loop = self._scope.registry, asyncio.get_running_loop()
        spared = []
        for task in self._entries:
            if task.done():
                continue
            if registry.marks.lately(task):
                # It cleans up. Where it swallowed that cancel instead, it gets this one when its grace is over.
                loop.call_later(registry.grace_s, task.cancel)
                spared.append(task)
                continue
            registry.mark_cancelled(task)
            if is_protected(task):
                cancel_softly(task, partial(_cancel, task), registry.grace_s)
                spared.append(task)
        self._tasks.difference_update(spared)
        super()._abort()  # type: ignore[misc]
        self._tasks.update(spared)


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
