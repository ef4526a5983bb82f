"""Scopes: named places where work is started, which end what they started when they are cancelled."""

from __future__ import annotations

import asyncio
import logging
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
from typing import Any, ParamSpec, TypeVar, cast

from ebbtide.admission import Gate
from ebbtide.block import Block
from ebbtide.cancelling import cancel_here
from ebbtide.errors import Refused, TimedOut
from ebbtide.limits import Admission, Limits
from ebbtide.registry import Entry, ManagedTask, Registry, current_entry, name_of, outcome_of

logger = logging.getLogger("ebbtide")

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

    def __init__(
        self,
        registry: Registry,
        name: str,
        timeout_s: float | None,
        parent: Scope | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.timeout_s: float | None = timeout_s if parent is None else _tighter(timeout_s, parent.timeout_s)
        self.durations: deque[float] = deque(maxlen=REMEMBERED)
        self.gate: Gate = Gate(registry, limits or Limits(), registry.gate if parent is None else parent.gate, name)
        self._registry = registry
        self._parent = parent
        # Weak: names may be made up at run time, and a scope without work and without owner is nothing.
        self._children: weakref.WeakValueDictionary[str, Scope] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Scope {self.name}>"

    def scope(self, name: str, *, timeout_s: float | None = None, limits: Limits | None = None) -> Scope:
        """Return the scope of that name inside this one: cancelled with it, its limits no looser.

        Raises:
            ValueError: It is in use with other limits.
        """
        return child_scope(self._children, self._registry, name, timeout_s, self, limits)

    @property
    def limits(self) -> Limits:
        """How much may start here; setting it changes the scope's own limits at once, for what starts from now on."""
        return self.gate.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.gate.change(limits)

    @property
    def tasks_left(self) -> int:
        """Tasks and threads of this scope, and of those inside it, in flight."""
        mine = self._inside()
        return sum(item.scope in mine and item.number not in self._registry.blocks for item in self._registry.entries())

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
            name: For people. None: logs and dumps show the scope and a number, asyncio's own `get_name` the scope.
            meta: Shown with the task in dumps and logs.
            timeout_s: Seconds after which it is cancelled and ends with `TimedOut`.
            context: Its context variables; None: a copy of the caller's.

        Raises:
            Refused: There is no room, or the process drains; tell the caller to go elsewhere, or to come again.
        """
        registry = self._registry
        number = next(registry.numbers)
        live = registry.live
        # In before it is asked for, and before the task exists: an eager task may have ended before it is returned.
        live[number] = None
        now = monotonic()
        plain = (
            registry.intake_open
            and self.gate.plain
            and len(live) <= registry.gate.max_tasks
            and registry.bucket.take(now)
        )
        if plain and timeout_s is None is self.timeout_s and get_ident() == registry.home:
            # The usual start in the fewest steps: `_start` spelled out.
            loop = registry.loop
            if loop is not None and loop.get_task_factory() is None:
                if context is None:
                    context = copy_context()
                context.run(_set_current, number)
                try:
                    task = ManagedTask(coroutine, loop=loop, name=name or self.name, context=context)
                except BaseException:
                    registry.withdraw(number)
                    raise
                task.number = number
                task.scope = self
                task.meta = meta
                task.started_at = now
                live[number] = task
                # In the task's own context, which is there already: a crash is logged with its trace id.
                task.add_done_callback(registry.on_task_ended_at_home, context=context)
                return task
        if not plain:
            try:
                if registry.intake_open:
                    self.gate.admit(number, now, self)
                else:
                    registry.question(number, self)
            except Refused:
                coroutine.close()
                raise
        return self._start(number, now, coroutine, name, meta, timeout_s, context)

    async def submit(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a task like `spawn`, and where the limits say so (`Admission.WAIT`), wait for room first.

        Args:
            coroutine: As for `spawn`; closed also where the wait is cancelled.
            name: As for `spawn`.
            meta: As for `spawn`.
            timeout_s: As for `spawn`; counts from the start of the task.
            context: As for `spawn`.

        Raises:
            Refused: There was no room in time, or the process drains.
        """
        if self.gate.limits.admission is not Admission.WAIT:
            return self.spawn(coroutine, name=name, meta=meta, timeout_s=timeout_s, context=context)
        number = next(self._registry.numbers)
        try:
            await self.gate.wait(number, self)
        except BaseException:
            coroutine.close()
            raise
        return self._start(number, monotonic(), coroutine, name, meta, timeout_s, context)

    def _start(
        self,
        number: int,
        now: float,
        coroutine: Coroutine[Any, Any, T],
        name: str | None,
        meta: Mapping[str, Any] | None,
        timeout_s: float | None,
        context: Context | None,
    ) -> asyncio.Task[T]:
        registry = self._registry
        try:
            # Cheaper than asking asyncio, which looks up the process id first.
            loop = registry.loop if get_ident() == registry.home else None
            if loop is None:
                loop = get_running_loop()
            if context is None:
                context = copy_context()
            context.run(_set_current, number)
            running = coroutine
            if timeout_s is not None or self.timeout_s is not None:
                limit_s = cast("float", _tighter(timeout_s, self.timeout_s))
                running = _limited(coroutine, limit_s, name or f"{self.name}-{number}")
            if loop.get_task_factory() is not None:
                return self._start_by_factory(
                    number, name or f"{self.name}-{number}", meta, running, coroutine, context
                )
            task = ManagedTask(running, loop=loop, name=name or self.name, context=context)
            task.number = number
            task.scope = self
            task.meta = meta
            task.started_at = now
            registry.live[number] = task
            task.add_done_callback(registry.on_task_ended, context=context)
            if running is not coroutine:
                task.add_done_callback(partial(_close, coroutine))
        except BaseException:
            coroutine.close()
            registry.withdraw(number)
            self.gate.leave(number, "cancelled")
            raise
        return task

    def _start_by_factory(
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
        self.end(entry, outcome_of(task, entry))

    def end(self, entry: Entry, outcome: str) -> None:
        """Count the end of one of this scope's entries."""
        if outcome == "finished":
            self.durations.append(monotonic() - entry.started_at)
        self._registry.end(entry.number, outcome, self.gate)

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
        if registry.intake_open:
            self.gate.admit(number, monotonic(), self)
        else:
            registry.question(number, self)
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
            self.gate.leave(number, "cancelled")
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

    def shed_oldest(self) -> bool:
        """Cancel the oldest task of this scope and those inside it for a new one; False where there is none."""
        registry = self._registry
        if not registry.is_home():
            return False  # tasks are cancelled in the thread of their loop
        mine = self._inside()
        asking = current_entry.get()
        for item in registry.entries():
            task = item if isinstance(item, ManagedTask) else item.task
            if (
                task is not None
                and item.scope in mine
                and item.number not in registry.blocks
                and item.number != asking
                and not registry.was_cancelled(item)
            ):
                logger.warning("ebbtide: task %s of %s is cancelled to make room", name_of(item), item.scope.name)
                cancel_here(registry, [item], "shed: no room for a new one")
                return True
        return False

    def _inside(self) -> set[Scope]:
        found = {self}
        for child in list(self._children.values()):
            found |= child._inside()  # noqa: SLF001 (its own class)
        return found


def child_scope(
    siblings: weakref.WeakValueDictionary[str, Scope],
    registry: Registry,
    name: str,
    timeout_s: float | None,
    parent: Scope | None,
    limits: Limits | None,
) -> Scope:
    """Return the scope of that name, a new one where there is none."""
    path = name if parent is None else f"{parent.name}.{name}"
    found = siblings.get(name)
    if found is None:
        return siblings.setdefault(name, Scope(registry, path, timeout_s, parent, limits))
    wanted_s = timeout_s if parent is None else _tighter(timeout_s, parent.timeout_s)
    if found.timeout_s != wanted_s:
        raise ValueError(
            f"scope {path}: timeout_s is {found.timeout_s} where it was made, and {wanted_s} here; "
            "use one value, or another name"
        )
    if limits is not None and limits != found.gate.own_limits:
        raise ValueError(f"scope {path}: it has other limits already; set its `limits` to change them")
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
