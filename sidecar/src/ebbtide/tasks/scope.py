"""Scopes: named places where work is started, which end what they started when they are cancelled."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from time import monotonic
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar

from ebbtide.errors import Refused
from ebbtide.stacks.frames import Step, caller
from ebbtide.tasks.admission import Gate
from ebbtide.tasks.agreement import must_agree
from ebbtide.tasks.block import Block
from ebbtide.tasks.cancelling import cancel_everywhere, cancel_here
from ebbtide.tasks.counted import FEW, SAMPLED_EVERY_S, counted
from ebbtide.tasks.entries import Live, ManagedTask, close_unbegun, current_entry, name_of, outcome_of, task_of
from ebbtide.tasks.limits import Admission, Limits, tighter
from ebbtide.tasks.parent import Parent
from ebbtide.tasks.registry import KNOWS_LOOP, Registry, asking
from ebbtide.tasks.restarts import OnCrash, Restart
from ebbtide.tasks.starting import adopt, start
from ebbtide.tasks.supervision import supervised
from ebbtide.tasks.threads import in_thread

logger = logging.getLogger("ebbtide")

T = TypeVar("T")
P = ParamSpec("P")

REMEMBERED = 200
"""How many durations of finished work a scope keeps for the estimate."""


class Scope(Parent):
    """Where work starts. Get one from `Runtime.scope`, and narrower ones from its own `scope`.

    Attributes:
        name: Dotted path from the root.
        timeout_s: Limit for each task; the tightest of the scope, its parents and the call counts. None: no limit.
        on_crash: What a crash does to the rest of the scope.
        failure: What crashed first; stays None where crashes are isolated.
        heartbeat_s: How often work of this scope promises to call `ebbtide.heartbeat`, in seconds; None: never.
        opened_by: Number of the entry that made it, as long as nobody else asked for it; 0: no entry.
        opened_at: Where it was made.
        registry: What is in flight.
        durations: Seconds that work of this scope took which finished lately.
        sampled_at: When the latest task or block began that tells how long it took, monotonic seconds.
        next_sample_at: When the next such one may begin.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        timeout_s: float | None,
        parent: Scope | None = None,
        limits: Limits | None = None,
        on_crash: OnCrash | None = None,
        heartbeat_s: float | None = None,
    ) -> None:
        self.name = name
        self.heartbeat_s: float | None = parent.heartbeat_s if heartbeat_s is None and parent else heartbeat_s
        self.opened_by = current_entry.get()
        self.opened_at: Step | None = caller()
        self.on_crash = OnCrash.ISOLATE if on_crash is None else OnCrash(on_crash)
        self.failure: BaseException | None = None
        self.timeout_s: float | None = timeout_s if parent is None else tighter(timeout_s, parent.timeout_s)
        self.durations: deque[float] = deque(maxlen=REMEMBERED)
        self.gate: Gate = Gate(registry, limits or Limits(), registry.gate if parent is None else parent.gate, name)
        self.registry = registry
        self.sampled_at = self.next_sample_at = 0.0
        self._parent = parent
        # Weak: names may be made up at run time.
        self._children: weakref.WeakValueDictionary[str, Scope] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Scope {self.name}>"

    def scope(
        self,
        name: str,
        *,
        timeout_s: float | None = None,
        limits: Limits | None = None,
        on_crash: OnCrash | None = None,
        heartbeat_s: float | None = None,
    ) -> Scope:
        """Return the scope of that name inside this one: cancelled with it, its limits no looser.

        Arguments as for `Runtime.scope`; without `heartbeat_s` that of this scope holds.

        Raises:
            ValueError: It is in use with other limits.
        """
        return child_scope(self._children, self.registry, name, timeout_s, self, limits, on_crash, heartbeat_s)

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
        return sum(item.scope in mine and type(item) is not Block for item in self.registry.entries())

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
            TypeError: `coroutine` is none: a function that was not called, say, or a future.
        """
        registry = self.registry
        number = next(registry.numbers)
        live = registry.live
        # In before it is asked for, and before the task exists: an eager task may have ended before it is returned.
        live[number] = None
        now = monotonic()
        held = len(live)
        few = held <= registry.gate.room
        admitted = False
        if registry.intake_open and self.gate.plain and (few or held <= registry.gate.max_tasks):
            # `TokenBucket.take` and, below, `start` in the usual case, spelled out: a call costs more than its work.
            bucket = registry.bucket
            full_at = bucket.full_at
            if full_at < now:
                full_at = now
                admitted = True
            else:
                admitted = full_at - now <= bucket.slack_s
            if admitted:
                bucket.full_at = full_at + bucket.interval_s
                sampled_at = None
                if now >= self.next_sample_at or held < FEW:
                    self.next_sample_at = now + SAMPLED_EVERY_S
                    self.sampled_at = sampled_at = now
                    # In a crowd not for each: to ask costs a fortieth of the task, and a factory is rarely set then.
                    registry.factory_set = registry.task_factory() is not None
                if (
                    few
                    and timeout_s is None
                    and self.timeout_s is None
                    and asking() == registry.here
                    and type(coroutine) is CoroutineType
                    and not registry.factory_set
                ):
                    running = counted(self, number, coroutine, sampled_at)
                    try:
                        if KNOWS_LOOP and context is None:
                            task = ManagedTask(running, name=name or self.name)
                        else:
                            task = ManagedTask(running, loop=registry.loop, name=name or self.name, context=context)
                    except BaseException:
                        close_unbegun(running)
                        registry.withdraw(number)
                        raise
                    task.number = number
                    task.scope = self
                    task.meta = meta
                    task.started_at = self.sampled_at  # one number for those that start together: 32 bytes less
                    live[number] = task
                    return task
        try:
            if not admitted:
                self._ask(number, now)
        except Refused:
            close_unbegun(coroutine)
            raise
        return start(self, number, now, coroutine, name, meta, tighter(timeout_s, self.timeout_s), context)

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
        number = next(self.registry.numbers)
        try:
            await self.gate.wait(number, self)
        except BaseException:
            close_unbegun(coroutine)
            raise
        return start(self, number, monotonic(), coroutine, name, meta, tighter(timeout_s, self.timeout_s), context)

    def enter(self) -> int:
        """Let an entry in and return its number; raise Refused where it is not admitted."""
        number = next(self.registry.numbers)
        self.registry.live[number] = None
        self._ask(number, monotonic())
        return number

    def _ask(self, number: int, now: float) -> None:
        """Ask for the admission of an inserted entry; Refused: it is out again."""
        if self.registry.intake_open:
            self.gate.admit(number, now, self)
        else:
            self.registry.question(number, self)

    def end(self, item: Live, outcome: str) -> None:
        """Count the end of one of this scope's entries."""
        if outcome == "finished":
            self.durations.append(monotonic() - item.started_at)
        self.registry.end(item.number, outcome, self.gate)

    def task_ended(self, item: Live, error: BaseException | None) -> None:
        """Count the end of an entry by what its task raised, and do what follows from a crash."""
        outcome = outcome_of(error, item)
        self.end(item, outcome)
        if outcome == "failed":
            self.crashed(item, error)

    def supervise(
        self,
        function: Callable[[], Coroutine[Any, Any, T]],
        *,
        restart: Restart | None = None,
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> asyncio.Task[T]:
        """Start a task that runs a coroutine function, and again where that crashes.

        It is one task from beginning to end, however often it is started again. Each crash is logged once; the last one
        is the task's, and `on_crash` says what comes of it. Neither what was cancelled and crashes in its cleanup is
        started again, nor anything while the process drains.

        Args:
            function: What to run; called anew each time.
            restart: How often and after which pauses; None: as `Restart` has it.
            name: As for `spawn`.
            meta: As for `spawn`.
            timeout_s: Limit of each run; the scope's limits each run as well. A run that times out counts as a crash.

        Raises:
            Refused: As for `spawn`.
        """
        number = self.enter()
        running = supervised(self.registry, number, function, restart or Restart(), tighter(timeout_s, self.timeout_s))
        # The limit is one of each run, not of all of them together.
        return start(self, number, monotonic(), running, name, meta, None, None)

    def track(self, name: str | None = None, *, meta: Mapping[str, Any] | None = None) -> Block:
        """Count a `with` block as work in flight, in the task or the thread that runs it.

        Entering it raises `Refused` where the process drains and the block is no part of work in flight.
        """
        block: Block = Block()
        block.scope = self
        block.name = name or self.name
        block.meta = meta
        return block

    def thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread of its own, as work in flight; `asyncio.wrap_future` makes the result awaitable.

        The thread is a daemon: unlike those of asyncio's executor it does not hold the process when the drain is over.
        It cannot be cancelled; a long function looks at `Runtime.draining` from time to time.

        Raises:
            Refused: The process drains.
        """
        return in_thread(self, self.enter(), partial(function, *args, **kwargs))

    def adopt(self, task: asyncio.Task[Any], *, name: str | None = None, meta: Mapping[str, Any] | None = None) -> int:
        """Count a task that somebody else made as work in flight, and return its id; in the thread of its loop.

        Its own context stays as it is: what it starts itself is no part of it, and `heartbeat` in it is nobody's.

        Args:
            task: Any asyncio task that has not ended.
            name: For people; None: the task's own.
            meta: As for `spawn`.

        Raises:
            Refused: As for `spawn`; the task goes on, uncounted.
            ValueError: The task was started by `spawn`, or has ended.
        """
        return adopt(self, task, name, meta)

    def cancel(self, reason: str) -> int:
        """Cancel everything that this scope and those inside it started; return how much that is.

        Call it in the loop's own thread. What this cancelled before is not cancelled again: a second cancel would break
        its cleanup off.
        """
        chosen = list(self._cancellable())
        cancel_here(self.registry, chosen, reason)
        return len(chosen)

    def crashed(self, item: Live, error: BaseException | None) -> None:
        """Do what `on_crash` says about work of this scope that crashed; from any thread."""
        if self.on_crash is not OnCrash.PROPAGATE:
            return
        if self.failure is None:
            self.failure = error
        reason = f"{name_of(item)} of {item.scope.name} crashed"
        chosen = list(self._cancellable())
        if chosen:
            logger.warning("ebbtide: cancelling %d in %s: %s", len(chosen), self.name, reason)
            cancel_everywhere(self.registry, chosen, reason, self.registry.grace_s)
        if self._parent is not None:
            self._parent.crashed(item, error)

    def _cancellable(self) -> Iterator[Live]:
        """Return what is in flight here and inside, the oldest first, and was not asked to end lately."""
        mine, registry = self._inside(), self.registry
        marked = len(registry.marks) > 0
        for item in registry.entries():
            if item.scope in mine and not (marked and registry.marks.lately(task_of(item))):
                yield item

    def shed_oldest(self) -> bool:
        """Cancel the oldest task of this scope and those inside it for a new one; False where there is none."""
        if not self.registry.is_home():
            return False  # tasks are cancelled in the thread of their loop
        own = current_entry.get()
        for item in self._cancellable():
            if task_of(item) is not None and type(item) is not Block and item.number != own:
                logger.warning("ebbtide: task %s of %s is cancelled to make room", name_of(item), item.scope.name)
                cancel_here(self.registry, [item], "shed: no room for a new one")
                return True
        return False

    def _inside(self) -> set[Scope]:
        # The copy of the references is atomic: a crash in a thread asks while scopes are made elsewhere.
        children = [child for reference in self._children.valuerefs() if (child := reference()) is not None]
        return {self}.union(*(child._inside() for child in children))  # noqa: SLF001 (its own class)


def child_scope(
    siblings: weakref.WeakValueDictionary[str, Scope],
    registry: Registry,
    name: str,
    timeout_s: float | None,
    parent: Scope | None,
    limits: Limits | None,
    on_crash: OnCrash | None,
    heartbeat_s: float | None,
) -> Scope:
    """Return the scope of that name, a new one where there is none."""
    path = f"{parent.name}.{name}" if parent else name
    if heartbeat_s is not None and not heartbeat_s > 0:
        raise ValueError(f"scope {path}: heartbeat_s must be above 0, or None for no heartbeats; not {heartbeat_s!r}")
    found = siblings.get(name)
    if found is None:
        return siblings.setdefault(name, Scope(registry, path, timeout_s, parent, limits, on_crash, heartbeat_s))
    if current_entry.get() != found.opened_by:
        found.opened_by = 0  # shared: it does not end with who happened to be the first to ask for it
    wanted_s = timeout_s if parent is None else tighter(timeout_s, parent.timeout_s)
    must_agree(found, wanted_s, limits, on_crash, heartbeat_s)
    return found
