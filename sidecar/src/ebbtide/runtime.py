"""One runtime per process: puts machine, scopes, agent, admin server and signals together."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from ebbtide.admin import AdminServer
from ebbtide.agent import Agent
from ebbtide.conductor import Conductor
from ebbtide.environment import EXIT_MARGIN_S
from ebbtide.errors import NotRunning
from ebbtide.exposition import Numbers
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
    SetReady,
    Source,
    Started,
    StoreRestarted,
    TasksChanged,
    UndrainRequested,
)
from ebbtide.machine import Report as ReportEffect
from ebbtide.protocol import PodState, Report
from ebbtide.registry import Registry
from ebbtide.scope import Scope, call_in, cancel_all
from ebbtide.settings import Settings
from ebbtide.signals import Signals

logger = logging.getLogger("ebbtide")

HOOK_S = 5.0
"""Seconds that one exit hook may take."""
FINAL_REPORT_S = 1.0

ExitHook = Callable[[], Awaitable[None] | None]


class Runtime:
    """Know every task of the process, and bring it to an orderly end.

    ```python
    async with ebbtide.Runtime.from_env() as runtime:
        orders = runtime.scope("orders")
        ...
        await runtime.wait_exit()
    ```

    Args:
        settings: See `Settings`; None: read from the environment.
        watchdog: End the process by force where it outlives its budget after SIGTERM or preStop. Off in tests.
    """

    def __init__(self, settings: Settings | None = None, *, watchdog: bool = True) -> None:
        self._settings = Settings.from_env(os.environ) if settings is None else settings
        self._watchdog = watchdog
        self._boot_id = uuid4().hex
        self._registry = Registry(self._tasks_changed)
        self._conductor = Conductor(Machine(defaults=self._settings.durations), self._registry.__len__, self._carry_out)
        self._admin = AdminServer(
            self, self._settings.admin_host, self._settings.admin_port, self._settings.admin_token
        )
        self._signals = Signals(self._on_signal)
        self._agent: Agent | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = False
        self._draining = False
        self._drain_event = asyncio.Event()
        self._exit_event = asyncio.Event()
        self._drain_hooks: list[Callable[[], None]] = []
        self._exit_hooks: list[ExitHook] = []
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
        for problem in self._settings.problems:
            logger.warning("ebbtide: %s", problem)
        self._conductor.start()
        self.admin_port = self._admin.start()
        self._signals.install()
        if self._settings.has_store:
            self._agent = Agent(
                self._settings,
                make_report=self._report,
                on_order=lambda order: self._conductor.post(Ordered(order)),
                on_store_restarted=lambda: self._conductor.post(StoreRestarted()),
            )
            self._agent.start()
        self._conductor.post(Started())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain what is in flight, run the exit hooks, and say goodbye."""
        # Whoever served requests has stopped by now: there is nothing to wait for before intake closes.
        own = self._settings.durations
        leaving = Durations(0.0, own.drain_timeout_s, own.cancel_grace_s)
        self._conductor.post(DrainRequested(Reason(Source.EXIT), leaving, leave=True))
        await self._exit_event.wait()
        await self._run_exit_hooks()
        if self._agent is not None:
            await asyncio.to_thread(self._agent.finish, FINAL_REPORT_S)
        self._signals.uninstall()
        await asyncio.to_thread(self._admin.stop)
        self._conductor.stop()

    def scope(self, name: str, *, timeout_s: float | None = None) -> Scope:
        """Return a new root scope; `timeout_s` limits each of its tasks."""
        return Scope(self._registry, name, timeout_s)

    @property
    def state(self) -> PodState:
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
        return len(self._registry)

    async def drain_requested(self) -> None:
        """Wait until a drain begins: for work that can stop early by itself."""
        await self._drain_event.wait()

    async def wait_exit(self) -> None:
        """Wait until the process is to leave: it is drained and will not be taken back."""
        await self._exit_event.wait()

    def on_drain(self, hook: Callable[[], None]) -> None:
        """Call `hook` in the loop whenever a drain begins."""
        self._drain_hooks.append(hook)

    def on_exit(self, hook: ExitHook) -> None:
        """Call `hook` after the drain, the last registered first.

        Each has five seconds; one that fails is logged, and the rest still run.
        """
        self._exit_hooks.append(hook)

    def drain(self, reason: str = "", *, leave: bool = True) -> None:
        """Begin to drain, from any thread; `leave`: and exit after that."""
        self.request_drain(Source.API, reason, leave=leave)

    def undrain(self) -> None:
        """Take a drain back where that is still possible, from any thread."""
        self._conductor.post(UndrainRequested())

    def alive(self) -> bool:
        """Say whether the thread that keeps the deadlines lives."""
        return self._conductor.alive()

    def request_drain(self, source: Source, text: str, *, leave: bool) -> None:
        """Begin to drain on somebody's behalf."""
        self._conductor.post(DrainRequested(Reason(source, text), leave=leave))

    def request_undrain(self) -> bool:
        """Take a drain back; False where it cannot be."""
        machine = self._conductor.machine
        possible = not machine.leaving and not machine.forced
        if possible:
            self.undrain()
        return possible

    def wait_drained(self, timeout_s: float) -> bool:
        """Block the calling thread until the process is drained; False when the time is over."""
        return self._conductor.wait_drained(timeout_s)

    def drain_view(self) -> Mapping[str, Any]:
        """Return the drain as JSON."""
        machine, now = self._conductor.machine, time.monotonic()
        started = machine.drain_started_at
        return {
            "state": machine.state.value,
            "reason": str(machine.reason) if machine.reason else None,
            "active": len(self._registry),
            "oldest_age_s": round(self._registry.oldest_age_s(), 3),
            "eta_s": self._registry.eta_s(),
            "draining_for_s": None if started is None else round(now - started, 3),
            "deadline_in_s": None if started is None else round(machine.deadline_at - now, 3),
            "forced": machine.forced,
            "tally": dict(self._registry.tally),
            "late_arrivals": self._registry.late_arrivals,
        }

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """Return every task in flight, oldest first."""
        now = time.monotonic()
        return [
            {
                "id": entry.id,
                "name": entry.name,
                "kind": entry.kind,
                "scope": entry.scope.name,
                "age_s": round(now - entry.started_at, 3),
                "state": "cancelling" if entry.cancelled_for else "running",
                "meta": entry.meta,
            }
            for entry in self._registry.entries()
        ]

    def sample(self) -> Numbers:
        """Return what is counted, for the metrics."""
        machine = self._conductor.machine
        started = machine.drain_started_at
        return Numbers(
            state=machine.state,
            active=len(self._registry),
            oldest_age_s=self._registry.oldest_age_s(),
            tally=dict(self._registry.tally),
            drain_age_s=None if started is None else time.monotonic() - started,
            late_arrivals=self._registry.late_arrivals,
            store_connected=None if self._agent is None else self._agent.connected,
        )

    def _report(self, sequence: int, phase_revision: int) -> Report:
        machine = self._conductor.machine
        return Report(
            state=machine.state,
            sequence=sequence,
            boot_id=self._boot_id,
            generation=machine.generation,
            active=len(self._registry),
            oldest_age_s=round(self._registry.oldest_age_s(), 3),
            eta_s=self._registry.eta_s(),
            tally=dict(self._registry.tally),
            forced=machine.forced,
            phase_revision=phase_revision,
        )

    def _tasks_changed(self, left: int) -> None:
        # Outside a drain nobody waits for the count: a task then costs no event.
        if self._draining:
            self._conductor.post(TasksChanged(left))
        if self._agent is not None:
            self._agent.load()

    def _on_signal(self, name: str, count: int) -> None:
        # The second one is from somebody in a hurry: cancel now, clean up within the grace.
        grace_s = self._settings.durations.cancel_grace_s
        durations = None if count == 1 else Durations(0.0, 0.0, grace_s)
        self._conductor.post(DrainRequested(Reason(Source.SIGNAL, name), durations, leave=True))

    def _carry_out(self, effect: Effect) -> None:
        """Carry out one effect, in the conductor's thread."""
        assert self._loop is not None
        match effect:
            case SetReady(ready):
                self._ready = ready
                self._set_draining(not ready)
            case CloseIntake():
                self._registry.intake_open = False
            case OpenIntake():
                self._registry.intake_open = True
            case CancelTasks(reason):
                logger.warning("ebbtide: cancelling %d tasks: %s", len(self._registry), reason)
                cancel_all(self._registry, self._loop, reason)
            case AbandonTasks():
                names = ", ".join(entry.name for entry in self._registry.entries()[:20])
                logger.error("ebbtide: abandoned %d tasks: %s", self._registry.abandon(), names)
            case ReportEffect():
                logger.info("ebbtide: %s, %d tasks", self.state, len(self._registry))
                if self._agent is not None:
                    self._agent.edge()
            case Exit(insist):
                call_in(self._loop, self._exit_event.set)
                if insist and self._watchdog:
                    self._start_watchdog()

    def _set_draining(self, draining: bool) -> None:
        assert self._loop is not None
        if draining == self._draining:
            return
        self._draining = draining
        call_in(self._loop, self._drain_began if draining else self._drain_event.clear)

    def _drain_began(self) -> None:
        self._drain_event.set()
        for hook in self._drain_hooks:
            try:
                hook()
            except Exception:
                logger.exception("ebbtide: the drain hook %r failed", hook)

    async def _run_exit_hooks(self) -> None:
        for hook in reversed(self._exit_hooks):
            try:
                async with asyncio.timeout(HOOK_S):
                    waiting = hook()
                    if waiting is not None:
                        await waiting
            except Exception:
                logger.exception("ebbtide: the exit hook %r failed", hook)

    def _start_watchdog(self) -> None:
        def end() -> None:
            logger.critical("ebbtide: still here %g s after the drain ended; ending the process", EXIT_MARGIN_S)
            logging.shutdown()
            os._exit(1)

        timer = threading.Timer(EXIT_MARGIN_S, end)
        timer.daemon = True
        timer.start()
