"""What the machine's effects do to this process; carried out in the conductor's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from ebbtide.environment import EXIT_MARGIN_S
from ebbtide.lifecycle.drainwatch import DrainWatch
from ebbtide.lifecycle.hooks import Hooks
from ebbtide.lifecycle.machine import (
    AbandonTasks,
    CancelTasks,
    CloseIntake,
    Effect,
    Exit,
    Machine,
    OpenIntake,
    Report,
    SetReady,
)
from ebbtide.lifecycle.watchdog import LEAD_S, Watchdog
from ebbtide.tasks.cancelling import call_in, cancel_everywhere
from ebbtide.tasks.registry import Registry
from ebbtide.vocabulary import PodState

logger = logging.getLogger("ebbtide")

FINAL_REPORT_S = 1.0


class Effects:
    """Carry out effects on one process.

    Args:
        registry: Its work.
        drain_watch: Takes note of what happens.
        drain_hooks: Run when a drain begins.
        watchdog: None: nothing ends the process by force.
        tell: Tells the operator that something changed.
        give_up_start: Called in the loop where the process is told to leave before it has started.
        exit_when_due: Calls what it is given once the process may exit.
        at_closing: Called in the loop whenever intake has been closed.

    Attributes:
        ready: Whether readiness probes are answered with success.
        draining: Whether a drain has begun.
        drain_began: Set while it has.
        exit_due: Set when the application is to leave.
    """

    def __init__(
        self,
        registry: Registry,
        drain_watch: DrainWatch,
        drain_hooks: Hooks,
        watchdog: Watchdog | None,
        tell: Callable[[], None],
        give_up_start: Callable[[], None],
        exit_when_due: Callable[[Machine, Callable[[], None]], None],
        at_closing: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.ready = False
        self.draining = False
        self.drain_began = asyncio.Event()
        self.exit_due = asyncio.Event()
        self._registry = registry
        self._drain_watch = drain_watch
        self._drain_hooks = drain_hooks
        self._running_hooks: set[asyncio.Task[None]] = set()
        self._watchdog = watchdog
        self._tell = tell
        self._give_up_start = give_up_start
        self._exit_when_due = exit_when_due
        self._at_closing = at_closing
        self._exiting = False
        self._deadline_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def settle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop that the application runs in."""
        self._loop = loop

    def observe(self, machine: Machine) -> None:
        """Look at the machine after a step and before its effects: what must not be missed whatever hangs."""
        assert self._loop is not None
        self._deadline_at = machine.deadline_at
        if self._watchdog is not None and not self._exiting:
            self._watchdog.expect_end_by(self._end_of(machine))
        self._exiting = machine.state is PodState.EXITING
        if machine.leaving and not machine.started:
            call_in(self._loop, self._give_up_start)
        self._drain_watch.observe(machine)

    def carry_out(self, effect: Effect, machine: Machine) -> None:
        """Carry out one effect of a machine as it is after the step."""
        assert self._loop is not None
        match effect:
            case SetReady(ready):
                self.ready = ready
                self._set_draining(draining=machine.draining)
            case CloseIntake():
                self._registry.close_intake()
                for function in self._at_closing:
                    call_in(self._loop, function)
            case OpenIntake():
                self._registry.intake_open = True
            case CancelTasks(reason):
                self._drain_watch.look_at_stragglers()
                logger.warning("ebbtide: cancelling %d tasks: %s", len(self._registry), reason)
                grace_s = max(0.0, machine.deadline_at - time.monotonic())
                cancel_everywhere(self._registry, self._registry.entries(), reason, grace_s)
            case AbandonTasks():
                self._drain_watch.look_at_stragglers()
                # Loaded by the start of the runtime (`loading.py`), like all that a drain needs.
                from ebbtide.tasks.processes import kill

                left = self._registry.entries()
                kill(left)
                self._registry.abandon(left, "when the drain's budget was spent")
            case Report():
                report = self._drain_watch.settle()
                # Before anything is logged, which may block: the operator waits for this.
                self._tell()
                logger.info("ebbtide: %s, %d tasks", machine.state, len(self._registry))
                if report is not None:
                    logger.info("ebbtide: %s", report.line())
            case Exit():
                self._exit_when_due(machine, partial(call_in, self._loop, self.exit_due.set))

    async def drain_hooks_ended(self) -> None:
        """Wait for the drain hooks that run, and hurry those that outlast the drain.

        They were given its budget when it began; a second signal or an order may have cut that since, and the exit
        hooks are to have their time.
        """
        if not self._running_hooks:
            return
        # Those whose budget was not cut come to their own end at the same moment, and say how long they took.
        left_s = max(0.0, self._deadline_at - time.monotonic()) + self._drain_hooks.least_s
        _, late = await asyncio.wait(self._running_hooks, timeout=left_s)
        for running in late:
            running.cancel("the drain's budget is spent")
        if late:
            await asyncio.wait(late)

    def stop_budget_s(self) -> float:
        """Return how long the stop may take: what is left of the drain's budget, and the margin behind it."""
        left_s = max(0.0, self._deadline_at - time.monotonic())
        return left_s + EXIT_MARGIN_S - LEAD_S - FINAL_REPORT_S

    def _end_of(self, machine: Machine) -> float | None:
        """Return when the process has to be gone, in monotonic seconds; None: nobody insists on that."""
        if not (machine.insist and machine.draining):
            return None
        leaves_now = machine.state is PodState.EXITING
        # One that waited for its end, drained, has its margin from when that comes.
        from_at = max(machine.deadline_at, time.monotonic()) if leaves_now else machine.deadline_at
        return from_at + EXIT_MARGIN_S - LEAD_S

    def _set_draining(self, *, draining: bool) -> None:
        assert self._loop is not None
        if draining == self.draining:
            return
        self.draining = draining
        call_in(self._loop, self._begin_drain if draining else self.drain_began.clear)

    def _begin_drain(self) -> None:
        self.drain_began.set()
        running = asyncio.get_running_loop().create_task(
            self._drain_hooks.run(max(0.0, self._deadline_at - time.monotonic())), name="ebbtide-drain-hooks"
        )
        self._running_hooks.add(running)
        running.add_done_callback(self._running_hooks.discard)
