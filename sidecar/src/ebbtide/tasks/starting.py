"""From an admitted entry to its task, in the unusual ways: limited, in another thread's loop, made by others."""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop, iscoroutine
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar

from ebbtide.tasks.counted import CROWD, SAMPLED_EVERY_S, counted
from ebbtide.tasks.entries import Entry, ManagedTask, close_unbegun, current_entry, error_of, name_of
from ebbtide.tasks.timelimit import TimeLimit

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope

T = TypeVar("T")


def start(
    scope: Scope,
    number: int,
    now: float,
    coroutine: Coroutine[Any, Any, T],
    name: str | None,
    meta: Mapping[str, Any] | None,
    limit_s: float | None,
    context: Context | None,
) -> asyncio.Task[T]:
    """Start the task of an admitted entry; the coroutine is closed where that fails.

    Args:
        scope: Whose task it is.
        number: Of the entry.
        now: Monotonic seconds.
        coroutine: What to run.
        name: None: the scope's.
        meta: Shown with it.
        limit_s: Seconds that it may take; None: no limit.
        context: None: a copy of the caller's.
    """
    registry = scope.registry
    running = coroutine
    try:
        # Cheaper than asking asyncio, which looks up the process id first.
        loop = registry.loop if get_ident() == registry.home else None
        if loop is None:
            loop = get_running_loop()
    except RuntimeError:
        _withdraw(scope, number, coroutine)
        raise
    if loop.get_task_factory() is not None:
        # Let it make the task: there is only one per loop, and somebody wants that one. Not every factory knows the
        # argument `context`; without it a task copies the one it is made in.
        entry = Entry(number, "task", name or f"{scope.name}-{number}", scope, meta)
        own = copy_context() if context is None else context
        make = partial(own.run, loop.create_task, name=entry.name)
        made = start_entry(entry, coroutine, limit_s, own, make, partial(_adopted_ended, entry))
        entry.task = made
        return made
    try:
        if limit_s is not None:
            running = _limited(scope, number, coroutine, limit_s)
        at_home = loop is registry.loop
        call_back = not at_home or len(registry.live) > CROWD or type(coroutine) is not CoroutineType
        if not call_back:
            running = counted(scope, number, running, now)
        else:
            if context is None:
                context = copy_context()
            context.run(current_entry.set, number)
        task = ManagedTask(running, loop=loop, name=name or scope.name, context=context)
        task.number = number
        task.scope = scope
        task.meta = meta
        if now >= scope.next_sample_at:
            scope.sampled_at, scope.next_sample_at = now, now + SAMPLED_EVERY_S
        task.started_at = scope.sampled_at
        registry.live[number] = task
        if call_back:
            ended = registry.on_task_ended_at_home if at_home else registry.on_task_ended
            task.add_done_callback(ended, context=context)
    except BaseException:
        _withdraw(scope, number, running)
        raise
    return task


def start_entry(
    entry: Entry,
    coroutine: Coroutine[Any, Any, T],
    limit_s: float | None,
    context: Context,
    make: Callable[[Coroutine[Any, Any, T]], asyncio.Task[T]],
    ended: Callable[[asyncio.Task[T]], None],
) -> asyncio.Task[T]:
    """Start the task of an admitted entry by what makes tasks there; the coroutine is closed where that fails.

    Args:
        entry: Whose task it is.
        coroutine: What to run; closed also when the task has ended, which may be before its first step.
        limit_s: Seconds that it may take; None: no limit.
        context: Of its own; `ended` is called in it as well, so that a crash is logged with its trace id.
        make: Makes the task, in that context.
        ended: Called when it has ended, a turn of the loop later; counts that.

    Returns:
        The task, which is to be the entry's.
    """
    scope, number = entry.scope, entry.number
    scope.registry.live[number] = entry
    running = coroutine
    try:
        if limit_s is not None:
            running = _limited(scope, number, coroutine, limit_s)
        context.run(current_entry.set, number)
        task = make(running)
    except BaseException:
        _withdraw(scope, number, running)
        raise
    task.add_done_callback(partial(_entry_ended, coroutine, ended), context=context)
    return task


def adopt(scope: Scope, task: asyncio.Task[Any], name: str | None, meta: Mapping[str, Any] | None) -> int:
    """Count a task that somebody else made; see `Scope.adopt`."""
    if isinstance(task, ManagedTask):
        raise ValueError(f"task: {name_of(task)} of {task.scope.name} was started by a scope already")  # noqa: TRY004
    if task.done():
        raise ValueError(f"task: {task.get_name()} has ended")
    name = name or task.get_name()
    number = scope.enter()
    entry = Entry(number, "task", name, scope, meta)
    entry.task = task
    scope.registry.live[number] = entry
    task.add_done_callback(partial(_adopted_ended, entry))
    return number


def _adopted_ended(entry: Entry, task: asyncio.Task[Any]) -> None:
    entry.scope.task_ended(entry, error_of(task))
    entry.task = None


def _entry_ended(
    coroutine: Coroutine[Any, Any, Any], ended: Callable[[asyncio.Task[T]], None], task: asyncio.Task[T]
) -> None:
    # Cancelled before its first step, a task never comes to await what it was to limit, or what its factory wrapped.
    close_unbegun(coroutine)
    ended(task)


def _limited(scope: Scope, number: int, coroutine: Coroutine[Any, Any, T], limit_s: float) -> Coroutine[Any, Any, T]:
    # Without a limit asyncio says so. Inside of ours anything would do that can be awaited, and the rest be a crash.
    if not iscoroutine(coroutine):
        raise TypeError(f"a coroutine was expected, got {coroutine!r}")
    return TimeLimit(scope.registry, number, limit_s).run(coroutine)


def _withdraw(scope: Scope, number: int, running: Coroutine[Any, Any, Any]) -> None:
    """Take out an admitted entry whose task could not be started."""
    scope.registry.withdraw(number)
    scope.gate.leave(number, "cancelled")
    close_unbegun(running)
