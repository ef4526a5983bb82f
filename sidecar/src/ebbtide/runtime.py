"""One runtime per process: puts machine, scopes, agent, admin server and signals together."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ebbtide.admin.oversight import Oversight
from ebbtide.errors import NotRunning
from ebbtide.lifecycle.hooks import HOOK_S, Hook, Hooks
from ebbtide.lifecycle.machine import (
    DrainRequested,
    Durations,
    Machine,
    Reason,
    Source,
    Started,
    TasksChanged,
    UndrainRequested,
)
from ebbtide.lifecycle.startup import START_S, Stage, Start, StartUp
from ebbtide.loading import load
from ebbtide.settings import Settings
from ebbtide.tasks.limits import Limits
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.restarts import OnCrash
from ebbtide.tasks.scope import Scope, child_scope
from ebbtide.tasks.threads import in_daemon_thread
from ebbtide.vocabulary import PodState

if TYPE_CHECKING:
    from ebbtide.admin.exposition import Numbers
    from ebbtide.lifecycle.drainreport import DrainReport

logger = logging.getLogger("ebbtide")


class Runtime(Oversight):
    """Know every task of the process, and bring it to an orderly end.

    ```python
    async with ebbtide.Runtime.from_env() as runtime:
        orders = runtime.scope("orders")
        ...
        await runtime.wait_exit()
    ```

    Args:
        settings: See `Settings`; None: read from the environment.
        watchdog: End the process by force where it outlives its budget after SIGTERM, preStop or an order. Off in
            tests.
    """

    def __init__(self, settings: Settings | None = None, *, watchdog: bool = True) -> None:
        self._settings = Settings.from_env(os.environ) if settings is None else settings
        self._watchdog = watchdog
        self._registry = Registry(self._emptied, self._settings.limits, self._settings.durations.cancel_grace_s)
        self._scopes: weakref.WeakValueDictionary[str, Scope] = weakref.WeakValueDictionary()
        self._drain_hooks = Hooks("drain")
        self._exit_hooks = Hooks("exit")
        self._at_closing: list[Callable[[], object]] = []
        self._start_up = StartUp(self._exit_hooks)
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        """Make what belongs to one process: all but the scopes, the limits, the steps and the hooks."""
        # Here, and not by everybody who imports the library. In a forked child they are there: the parent has made one.
        from ebbtide.admin.views import Views
        from ebbtide.leaks.trendwatch import TrendWatch
        from ebbtide.leaks.watch import LeakWatch
        from ebbtide.lifecycle.conductor import PATROL_S, Conductor
        from ebbtide.lifecycle.drainwatch import DrainWatch
        from ebbtide.lifecycle.effects import Effects
        from ebbtide.lifecycle.signals import Signals
        from ebbtide.lifecycle.watchdog import Watchdog
        from ebbtide.workers.local import Local
        from ebbtide.workers.pod import Pod

        durations = self._settings.durations
        hooks = (self._drain_hooks, self._exit_hooks)
        self._drain_watch = DrainWatch(self._registry, lambda: [record for some in hooks for record in some.records])
        self._effects = Effects(
            self._registry,
            self._drain_watch,
            self._drain_hooks,
            Watchdog() if self._watchdog else None,
            tell=lambda: self._pod.edge(),  # noqa: PLW0108 (the pod is made last: it needs what this makes)
            give_up_start=self._start_up.give_up,
            exit_when_due=lambda machine, leave: self._pod.exit_when_due(machine, leave),  # noqa: PLW0108 (likewise)
            at_closing=self._at_closing,
        )
        self._conductor = Conductor(
            Machine(defaults=durations),
            self._registry.awaited,
            self._effects.carry_out,
            self._effects.observe,
            self._patrol,
        )
        self._signals = Signals(self._on_signal, lambda: self._conductor.do(self._log_dump))
        self._displaced: tuple[str, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trend = TrendWatch(PATROL_S)
        self._leaks = LeakWatch(self._registry, self._settings)
        self._views = Views(
            self._registry,
            lambda: self._conductor.machine,
            hooks,
            lambda: self._trend.trend,
            lambda: self._leaks.counts,
            self._drain_watch.report,
        )
        local = Local(self._conductor, self._registry, self._views, self._leaks, lambda: self._effects.ready, durations)
        self._pod = Pod(self, local, self._settings)

    @classmethod
    def from_env(cls) -> Self:
        """Return a runtime for the environment that the operator's webhook sets; outside Kubernetes, one on its own."""
        return cls()

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise NotRunning("a runtime runs once; make a new one")
        self._loop = asyncio.get_running_loop()
        # First, where there is nothing yet to undo.
        await load(self._settings)
        self._registry.settle(self._loop)
        self._effects.settle(self._loop)
        self._leaks.settle()
        for problem in self._settings.problems:
            logger.warning("ebbtide: %s", problem)
        self._conductor.start()
        self._signals.install()
        try:
            await self._pod.join(self._loop)
            await self._start_up.run()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        self._conductor.call(Started())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain what is in flight, run the exit hooks, and say goodbye.

        Where the body failed, tasks are cancelled at once; where it was cancelled, it left early, and they may finish.
        """
        crashed = error is not None and not isinstance(error, asyncio.CancelledError)
        async with AsyncExitStack() as last:
            last.callback(self._leaks.stop)
            last.callback(self._conductor.stop)
            last.callback(self._signals.uninstall)
            last.push_async_callback(in_daemon_thread, self._pod.leave)
            last.callback(self._pod.before_leave)
            last.push_async_callback(self._stop)
            last.push_async_callback(self._effects.drain_hooks_ended)
            await self._leave(crashed=crashed, why="" if error is None else repr(error))

    def scope(
        self,
        name: str,
        *,
        timeout_s: float | None = None,
        limits: Limits | None = None,
        on_crash: OnCrash | None = None,
        heartbeat_s: float | None = None,
    ) -> Scope:
        """Return the scope of that name.

        Args:
            name: Unique in the process.
            timeout_s: Limits each of its tasks, in seconds.
            limits: How much it may start; the process's limits hold as well.
            on_crash: What a crash does to the rest of the scope; None: nothing.
            heartbeat_s: How often its work promises to call `ebbtide.heartbeat`, in seconds; None: never.

        Raises:
            ValueError: It is in use with other limits.
        """
        return child_scope(self._scopes, self._registry, name, timeout_s, None, limits, on_crash, heartbeat_s)

    @property
    def limits(self) -> Limits:
        """How much the process may start; setting it takes effect at once, for what starts from now on."""
        return self._registry.gate.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._registry.gate.change(limits)

    @property
    def state(self) -> PodState:
        """Where the process stands on the way from its start to its end."""
        return self._conductor.machine.state

    @property
    def ready(self) -> bool:
        """Whether readiness probes are answered with success."""
        return self._effects.ready

    @property
    def draining(self) -> bool:
        """True from the start of a drain on; false again where it is taken back. Costs an attribute."""
        return self._effects.draining

    @property
    def intake_open(self) -> bool:
        """False while new work is refused."""
        return self._registry.intake_open

    @property
    def admin_port(self) -> int | None:
        """Port of the admin server; None before the start, and where it could not listen or another worker has it."""
        return self._pod.admin_port

    @property
    def tasks_left(self) -> int:
        """How much is in flight: tasks, blocks and threads."""
        return len(self._registry)

    async def drain_requested(self) -> None:
        """Wait until a drain begins: for work that can stop early by itself."""
        await self._effects.drain_began.wait()

    async def wait_exit(self) -> None:
        """Wait until the process is to leave: it is drained and will not be taken back."""
        await self._effects.exit_due.wait()

    def on_start(
        self, function: Start, stage: Stage, *, timeout_s: float = START_S, stop_timeout_s: float = HOOK_S
    ) -> None:
        """Start something when the runtime is entered, before it is ready; by stage, then as registered.

        What fails or is late ends the start: what had started is stopped in reverse, and entering raises `StartFailed`.

        Args:
            function: An async generator function (start, `yield`, stop), something that returns an async context
                manager, or a function or coroutine function that has nothing to stop.
            stage: When.
            timeout_s: Seconds for its start.
            stop_timeout_s: Seconds for its stop, which comes in its turn among the hooks of `on_exit`.

        Raises:
            NotRunning: The runtime was entered before.
        """
        self._start_up.add(function, stage, timeout_s, stop_timeout_s)

    def on_drain(self, hook: Hook, *, timeout_s: float = HOOK_S) -> None:
        """Call a function or a coroutine function in the loop whenever a drain begins, the last registered first.

        One that fails or takes longer than `timeout_s` is logged and recorded, and the rest still run. All of them
        together have the drain's budget.
        """
        self._drain_hooks.add(hook, timeout_s)

    def on_intake_closed(self, function: Callable[[], object]) -> None:
        """Call a plain function in the loop whenever intake closes, which is when the quiesce time of a drain is over.

        For what goes on by itself and is to end now, before anything is cancelled: long streams, consumers.
        """
        self._at_closing.append(function)

    def on_exit(self, hook: Hook, *, timeout_s: float = HOOK_S) -> None:
        """Call a function or a coroutine function after the drain, the last registered first; as in `on_drain`.

        All of them together have what is left of the drain's budget, and three of the five seconds until the kubelet
        ends the container.
        """
        self._exit_hooks.add(hook, timeout_s)

    def drain(self, reason: str = "", *, leave: bool = True) -> None:
        """Begin to drain, from any thread; `leave`: and exit after that."""
        self.request_drain(Source.API, reason, leave=leave)

    def undrain(self) -> None:
        """Take a drain back where that is still possible, from any thread."""
        self._conductor.call(UndrainRequested())

    def alive(self) -> bool:
        """Say whether the thread that keeps the deadlines lives."""
        return self._conductor.alive()

    def request_drain(self, source: Source, text: str, *, leave: bool) -> None:
        """Begin to drain on somebody's behalf."""
        self._conductor.call(DrainRequested(Reason(source, text), leave=leave))

    def request_undrain(self) -> bool:
        """Take a drain back; False where it cannot be."""
        self.undrain()
        return not self._conductor.machine.draining

    def wait_drained(self, timeout_s: float) -> bool:
        """Block the calling thread until the process is drained; False when the time is over."""
        return self._conductor.wait_drained(timeout_s)

    def drain_view(self) -> Mapping[str, Any]:
        """Return the drain as JSON."""
        return self._views.drain()

    def drain_report(self) -> DrainReport | None:
        """Return what the drain that is under way is like so far, or else the last one; None: there was none."""
        return self._drain_watch.report()

    def sample(self) -> Numbers:
        """Return what is counted, for the metrics."""
        return self._views.numbers(self._pod.store_connected)

    async def _leave(self, *, crashed: bool, why: str) -> None:
        own = self._settings.durations
        at_once = Durations(0.0, 0.0, own.cancel_grace_s)
        if crashed:
            self._pod.hurry()
        # Whoever served requests has stopped by now: there is nothing to wait for before intake closes.
        spend = at_once if crashed else Durations(0.0, own.drain_timeout_s, own.cancel_grace_s)
        if self._effects.draining and not crashed:
            # The drain has a budget, and the operator's order may have given it more than our own.
            self._conductor.post(DrainRequested(Reason(Source.EXIT), leave=True))
        else:
            self._conductor.post(DrainRequested(Reason(Source.EXIT, why), spend, leave=True))
        try:
            await self._effects.exit_due.wait()
        except asyncio.CancelledError:
            # Somebody is in a hurry: the cleanup of tasks is still waited for.
            self._pod.hurry()
            self._conductor.post(DrainRequested(Reason(Source.EXIT), at_once, leave=True))
            await self._effects.exit_due.wait()
            raise

    async def _stop(self) -> None:
        await self._exit_hooks.run(self._effects.stop_budget_s())

    def _emptied(self) -> None:
        self._conductor.post(TasksChanged(0))

    def _on_signal(self, name: str, count: int) -> None:
        # The second one is from somebody in a hurry: cancel now, clean up within the grace.
        grace_s = self._settings.durations.cancel_grace_s
        durations = None if count == 1 else Durations(0.0, 0.0, grace_s)
        self._conductor.post(DrainRequested(Reason(Source.SIGNAL, name), durations, leave=True))
        if count > 1:
            self._conductor.do(self._pod.hurry)

    def _log_dump(self) -> None:
        """Write what is in flight to the log, in a thread of its own: the conductor keeps deadlines."""
        threading.Thread(
            target=lambda: logger.warning("ebbtide: SIGUSR1: %s", self.dump()), name="ebbtide-dump", daemon=True
        ).start()

    def _patrol(self) -> None:
        self._trend.sample(len(self._registry))
        self._leaks.patrol()
        displaced = self._signals.displaced
        if displaced and displaced != self._displaced:
            logger.warning(
                "ebbtide: somebody replaced the handler of %s after this runtime started: it does not start a drain "
                "any more; start the runtime later, or call the earlier handler from the new one",
                ", ".join(displaced),
            )
        self._displaced = displaced

    def begin_anew(self) -> None:
        """Become, in a forked child, a runtime that was never started; scopes, limits, steps and hooks stay."""
        # Kept for good: a coroutine of the parent's that was thrown away would run its `finally` here.
        _inherited.append((dict(self.__dict__), self._start_up.begin_anew()))
        self._signals.forget()
        self._pod.forget()
        self._registry.begin_anew()
        self._begin()


_alive: weakref.WeakSet[Runtime] = weakref.WeakSet()
_inherited: list[object] = []


def _after_fork_in_child() -> None:
    for runtime in list(_alive):
        runtime.begin_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
