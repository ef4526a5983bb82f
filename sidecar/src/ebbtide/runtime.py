"""One runtime per process: puts machine, scopes, agent, admin server and signals together."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from ebbtide import watchdog
from ebbtide.admin import AdminServer
from ebbtide.agent import Agent
from ebbtide.cancelling import call_in, cancel_everywhere
from ebbtide.care import Care
from ebbtide.conductor import PATROL_S, Conductor
from ebbtide.environment import CA, ENDPOINTS, EXIT_MARGIN_S
from ebbtide.errors import NotRunning
from ebbtide.exposition import Numbers
from ebbtide.hooks import Hook, Hooks
from ebbtide.leakwatch import LeakWatch
from ebbtide.limits import Limits
from ebbtide.machine import (
    AbandonTasks,
    CancelTasks,
    CloseIntake,
    DrainRequested,
    Durations,
    Effect,
    Exit,
    Machine,
    OpenIntake,
    Ordered,
    Reason,
    Report,
    SetReady,
    Source,
    Started,
    StoreRestarted,
    TasksChanged,
    UndrainRequested,
)
from ebbtide.protocol import PodState
from ebbtide.registry import Registry
from ebbtide.restarts import OnCrash
from ebbtide.scope import Scope, child_scope
from ebbtide.settings import Settings
from ebbtide.signals import Signals
from ebbtide.threads import in_daemon_thread
from ebbtide.trendwatch import TrendWatch
from ebbtide.views import Views

logger = logging.getLogger("ebbtide")

FINAL_REPORT_S = 1.0


class Runtime(Care):
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
        self._conductor = Conductor(
            Machine(defaults=self._settings.durations), self._registry.awaited, self._carry_out, self._patrol
        )
        self._admin = AdminServer(
            self, self._settings.admin_host, self._settings.admin_port, self._settings.admin_token
        )
        self._signals = Signals(self._on_signal, lambda: self._conductor.do(self._log_dump))
        self._displaced: tuple[str, ...] = ()
        self._agent: Agent | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = False
        self._draining = False
        self._drain_event = asyncio.Event()
        self._exit_event = asyncio.Event()
        self._drain_hooks = Hooks("drain")
        self._exit_hooks = Hooks("exit")
        self._trend = TrendWatch(PATROL_S)
        self._leaks = LeakWatch(self._registry, self._settings)
        hooks = (self._drain_hooks, self._exit_hooks)
        self._views = Views(
            self._registry,
            lambda: self._conductor.machine,
            hooks,
            lambda: self._trend.trend,
            lambda: self._leaks.counts,
        )
        self._running_hooks: set[asyncio.Task[None]] = set()
        self.admin_port: int | None = None
        """Port of the admin server; None before the start, and where it could not listen."""

    @classmethod
    def from_env(cls) -> Self:
        """Return a runtime for the environment that the operator's webhook sets; outside Kubernetes, one on its own."""
        return cls()

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise NotRunning("a runtime runs once; make a new one")
        self._loop = asyncio.get_running_loop()
        self._registry.settle(self._loop)
        self._leaks.settle()
        for problem in self._settings.problems:
            logger.warning("ebbtide: %s", problem)
        self._conductor.start()
        self.admin_port = self._admin.start()
        self._signals.install()
        if self._settings.has_store:
            self._agent = self._start_agent()
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
            last.push_async_callback(in_daemon_thread, self._admin.stop)
            last.callback(self._signals.uninstall)
            if self._agent is not None:
                last.push_async_callback(in_daemon_thread, self._say_goodbye)
            last.push_async_callback(self._exit_hooks.run)
            last.push_async_callback(self._drain_hooks_ended)
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
        return self._ready

    @property
    def draining(self) -> bool:
        """True from the start of a drain on; false again where it is taken back. Costs an attribute."""
        return self._draining

    @property
    def intake_open(self) -> bool:
        """False while new work is refused."""
        return self._registry.intake_open

    @property
    def tasks_left(self) -> int:
        """How much is in flight: tasks, blocks and threads."""
        return len(self._registry)

    async def drain_requested(self) -> None:
        """Wait until a drain begins: for work that can stop early by itself."""
        await self._drain_event.wait()

    async def wait_exit(self) -> None:
        """Wait until the process is to leave: it is drained and will not be taken back."""
        await self._exit_event.wait()

    def on_drain(self, hook: Hook) -> None:
        """Call a function or a coroutine function in the loop whenever a drain begins, the last registered first.

        Each has five seconds; one that fails is logged, and the rest still run.
        """
        self._drain_hooks.add(hook)

    def on_exit(self, hook: Hook) -> None:
        """Call a function or a coroutine function after the drain, the last registered first; limits as in `on_drain`.

        All of them together have until the kubelet ends the container, five seconds after the drain's budget.
        """
        self._exit_hooks.add(hook)

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

    def sample(self) -> Numbers:
        """Return what is counted, for the metrics."""
        return self._views.numbers(None if self._agent is None else self._agent.connected)

    def _start_agent(self) -> Agent | None:
        try:
            agent = Agent(
                self._settings,
                make_report=self._views.report,
                count=self._registry.__len__,
                on_order=lambda order: self._conductor.post(Ordered(order)),
                on_store_restarted=lambda: self._conductor.post(StoreRestarted()),
            )
        except (ValueError, OSError) as error:  # a certificate that cannot be read is an OSError
            logger.error(  # noqa: TRY400 (the message says it all)
                "ebbtide: the operator is not told anything, since %s or %s cannot be used: %s", ENDPOINTS, CA, error
            )
            return None
        agent.start()
        return agent

    async def _leave(self, *, crashed: bool, why: str) -> None:
        own = self._settings.durations
        at_once = Durations(0.0, 0.0, own.cancel_grace_s)
        # Whoever served requests has stopped by now: there is nothing to wait for before intake closes.
        spend = at_once if crashed else Durations(0.0, own.drain_timeout_s, own.cancel_grace_s)
        if self._draining and not crashed:
            # The drain has a budget, and the operator's order may have given it more than our own.
            self._conductor.post(DrainRequested(Reason(Source.EXIT), leave=True))
        else:
            self._conductor.post(DrainRequested(Reason(Source.EXIT, why), spend, leave=True))
        try:
            await self._exit_event.wait()
        except asyncio.CancelledError:
            # Somebody is in a hurry: the cleanup of tasks is still waited for.
            self._conductor.post(DrainRequested(Reason(Source.EXIT), at_once, leave=True))
            await self._exit_event.wait()
            raise

    def _say_goodbye(self) -> None:
        if self._agent is not None and not self._agent.finish(FINAL_REPORT_S):
            logger.warning("ebbtide: the final report did not get through within %g s", FINAL_REPORT_S)

    def _emptied(self) -> None:
        self._conductor.post(TasksChanged(0))

    def _on_signal(self, name: str, count: int) -> None:
        # The second one is from somebody in a hurry: cancel now, clean up within the grace.
        grace_s = self._settings.durations.cancel_grace_s
        durations = None if count == 1 else Durations(0.0, 0.0, grace_s)
        self._conductor.post(DrainRequested(Reason(Source.SIGNAL, name), durations, leave=True))

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

    def _carry_out(self, effect: Effect, machine: Machine) -> None:
        """Carry out one effect, in the conductor's thread."""
        assert self._loop is not None
        match effect:
            case SetReady(ready):
                self._ready = ready
                self._set_draining(draining=machine.draining)
            case CloseIntake():
                self._registry.close_intake()
            case OpenIntake():
                self._registry.intake_open = True
            case CancelTasks(reason):
                logger.warning("ebbtide: cancelling %d tasks: %s", len(self._registry), reason)
                grace_s = max(0.0, machine.deadline_at - time.monotonic())
                cancel_everywhere(self._registry, self._registry.entries(), reason, grace_s)
            case AbandonTasks():
                self._registry.abandon(self._registry.entries(), "when the drain's budget was spent")
            case Report():
                logger.info("ebbtide: %s, %d tasks", machine.state, len(self._registry))
                if self._agent is not None:
                    self._agent.edge()
            case Exit(insist):
                call_in(self._loop, self._exit_event.set)
                if insist and self._watchdog:
                    budget_left_s = max(0.0, machine.deadline_at - time.monotonic())
                    watchdog.end_process_after(budget_left_s + EXIT_MARGIN_S - watchdog.LEAD_S)

    def _set_draining(self, *, draining: bool) -> None:
        assert self._loop is not None
        if draining == self._draining:
            return
        self._draining = draining
        call_in(self._loop, self._drain_began if draining else self._drain_event.clear)

    def _drain_began(self) -> None:
        self._drain_event.set()
        running = asyncio.get_running_loop().create_task(self._drain_hooks.run(), name="ebbtide-drain-hooks")
        self._running_hooks.add(running)
        running.add_done_callback(self._running_hooks.discard)

    async def _drain_hooks_ended(self) -> None:
        if self._running_hooks:
            await asyncio.wait(self._running_hooks)
