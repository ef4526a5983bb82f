"""Scopes: named places where work is started, which end what they started when they are cancelled."""

from __future__ import annotations

import asyncio
import threading
import weakref
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from ebbtide.cancelling import cancel_here
from ebbtide.errors import Refused, TimedOut
from ebbtide.registry import Entry, ManagedTask, Registry, current_entry, outcome_of

T = TypeVar("T")
P = ParamSpec("P")

REMEMBERED = 200
"""How many durations of finished work a scope keeps for the estimate."""

_set_current = current_entry.set


class Scope:
    """Where work starts. Get one from `Runtime.scope`, and narrower ones from its own `scope`.

    Attributes:
        name: Dotted path from the root.
        timeout_s: Limit for each task; the tightest of the scope, its parents and the call counts. None: no limit.
        durations: Seconds that work of this scope took which finished lately.
    """

    def __init__(self, registry: Registry, name: str, timeout_s: float | None, parent: Scope | None = None) -> None:
        self.name = name
        self.timeout_s: float | None = timeout_s if parent is None else _tighter(timeout_s, parent.timeout_s)
        self.durations: deque[float] = deque(maxlen=REMEMBERED)
        self._registry = registry
        self._parent = parent
        # Weak: names may be made up at run time, and a scope without work and without owner is nothing.
        self._children: weakref.WeakValueDictionary[str, Scope] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Scope {self.name}>"

    def scope(self, name: str, *, timeout_s: float | None = None) -> Scope:
        """Return the scope of that name inside this one: cancelled with it, its limit no looser.

        Raises:
            ValueError: It is in use with another limit.
        """
        return child_scope(self._children, self._registry, name, timeout_s, self)

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
            timeout_s: Seconds after which it is cancelled and ends with `TimedOut`.
            context: Its context variables; None: a copy of the caller's.

        Raises:
            Refused: The process drains; tell the caller to go elsewhere.
        """
        registry = self._registry
        number = next(registry.numbers)
        # In before it is asked for, and before the task exists: an eager task may have ended before it is returned.
        registry.live[number] = None
        try:
            if not registry.intake_open:
                registry.question(number)
            # Cheaper than asking asyncio, which looks up the process id first.
            loop = registry.loop if get_ident() == registry.home else None
            if loop is None:
                loop = get_running_loop()
            if context is None:
                context = copy_context()
            context.run(_set_current, number)
            if name is None:
                name = f"{self.name}-{number}"
            if timeout_s is not None or self.timeout_s is not None:
                limit_s = cast("float", _tighter(timeout_s, self.timeout_s))
                running: Coroutine[Any, Any, T] = _limited(coroutine, limit_s, name)
            else:
                running = coroutine
            if loop.get_task_factory() is None:
                task = ManagedTask(running, loop=loop, name=name, context=context)
            else:
                return self._spawn_by_factory(number, name, meta, running, coroutine, context)
            task.number = number
            task.scope = self
            task.meta = meta
            task.started_at = monotonic()
            registry.live[number] = task
            task.add_done_callback(registry.task_ended)
            if running is not coroutine:
                task.add_done_callback(partial(_close, coroutine))
        except BaseException as error:
            coroutine.close()
            if not isinstance(error, Refused):
                registry.withdraw(number)
            raise
        return task

    def _spawn_by_factory(
        self,
        number: int,
        name: str,
        meta: Mapping[str, Any] | None,
        running: Coroutine[Any, Any, T],
        coroutine: Coroutine[Any, Any, T],
        context: Context,
    ) -> asyncio.Task[T]:
        """Let the loop's task factory make the task: there is only one per loop, and somebody wants that one."""
        entry = Entry(number, "task", name, self, meta)
        self._registry.live[number] = entry
        # Within the context, which the task copies: not every factory knows the argument.
        task: asyncio.Task[T] = context.run(partial(get_running_loop().create_task, running, name=name))
        entry.task = task
        task.add_done_callback(partial(self._ended_by_factory, entry, coroutine))
        return task

    def _ended_by_factory(self, entry: Entry, coroutine: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> None:
        coroutine.close()
        entry.task = None
        self.end(entry, outcome_of(task, entry.name, self.name, entry.meta))

    def end(self, entry: Entry, outcome: str) -> None:
        """Count the end of one of this scope's entries."""
        if outcome == "finished":
            self.durations.append(monotonic() - entry.started_at)
        self._registry.end(entry.number, outcome)

    def track(self, name: str | None = None, *, meta: Mapping[str, Any] | None = None) -> Block:
        """Count a `with` block as work in flight, in the task or the thread that runs it.

        Entering it raises `Refused` where the process drains and the block is no part of work in flight.
        """
        return Block(self._registry, self, name, meta)

    def thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread of its own, as work in flight; `asyncio.wrap_future` makes the result awaitable.

        The thread is a daemon: unlike those of asyncio's executor it does not hold the process when the drain is over.
        It cannot be cancelled; a long function looks at `Runtime.draining` from time to time.

        Raises:
            Refused: The process drains.
        """
        registry = self._registry
        number = next(registry.numbers)
        registry.live[number] = None
        if not registry.intake_open:
            registry.question(number)
        entry = Entry(number, "thread", f"{self.name}-{number}", self, None)
        registry.live[number] = entry
        context = copy_context()
        context.run(_set_current, number)
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        work = partial(self._run_thread, entry, future, partial(function, *args, **kwargs))
        try:
            threading.Thread(target=context.run, args=(work,), name=entry.name, daemon=True).start()
        except RuntimeError:
            registry.withdraw(number)
            raise
        return future

    def _run_thread(self, entry: Entry, future: Future[T], function: Callable[[], T]) -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 (it is the future's to raise)
            self.end(entry, "failed")
            future.set_exception(error)
        else:
            self.end(entry, "finished")
            future.set_result(result)

    def cancel(self, reason: str) -> int:
        """Cancel everything that this scope and those inside it started; return how much that is.

        Call it in the loop's own thread. What this cancelled before is not cancelled again: a second cancel would break
        its cleanup off.
        """
        mine = self._inside()
        chosen = [
            item for item in self._registry.entries() if item.scope in mine and not self._registry.was_cancelled(item)
        ]
        cancel_here(self._registry, chosen, reason)
        return len(chosen)

    def _inside(self) -> set[Scope]:
        found = {self}
        for child in list(self._children.values()):
            found |= child._inside()  # noqa: SLF001 (its own class)
        return found


class Block(Entry):
    """What `Scope.track` returns: an entry from the start of a `with` block to its end."""

    __slots__ = ("_before", "_registry")

    def __init__(  # the entry's own `__init__` is for one that lives already
        self, registry: Registry, scope: Scope, name: str | None, meta: Mapping[str, Any] | None
    ) -> None:
        self._registry = registry
        self.kind = "block"
        self.scope = scope
        self.name = name or scope.name
        self.meta = meta
        self.task = None

    def __enter__(self) -> Self:
        registry = self._registry
        self.number = number = next(registry.numbers)
        self.started_at = monotonic()
        registry.live[number] = self
        if not registry.intake_open:
            registry.question(number)
        try:
            self.task = asyncio.current_task()
        except RuntimeError:  # no loop in this thread
            self.task = None
        self._before = current_entry.get()
        _set_current(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Restored by value: in an async generator the token belongs to another context.
        _set_current(self._before)
        self.task = None
        if kind is None:
            self.scope.durations.append(monotonic() - self.started_at)
            self._registry.end(self.number, "finished")
        else:
            self._registry.end(self.number, "cancelled" if issubclass(kind, asyncio.CancelledError) else "failed")


def child_scope(
    siblings: weakref.WeakValueDictionary[str, Scope],
    registry: Registry,
    name: str,
    timeout_s: float | None,
    parent: Scope | None,
) -> Scope:
    """Return the scope of that name, a new one where there is none."""
    path = name if parent is None else f"{parent.name}.{name}"
    made = Scope(registry, path, timeout_s, parent)
    found = siblings.setdefault(name, made)
    if found.timeout_s != made.timeout_s:
        raise ValueError(
            f"scope {path}: timeout_s is {found.timeout_s} where it was made, and {made.timeout_s} here; "
            "use one value, or another name"
        )
    return found


async def _limited(coroutine: Coroutine[Any, Any, T], timeout_s: float, name: str) -> T:
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await coroutine
    except TimeoutError as error:
        # The task's own TimeoutErrors are failures like others.
        if not limit.expired():
            raise
        raise TimedOut(name, timeout_s) from error


def _close(coroutine: Coroutine[Any, Any, Any], _task: asyncio.Task[Any]) -> None:
    # Cancelled before its first step, a task never comes to await what it was to limit.
    coroutine.close()


def _tighter(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
