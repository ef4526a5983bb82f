"""The thread that owns the machine: takes events, steps, carries out effects, and keeps deadlines.

It is no part of the event loop, so a loop that is blocked still obeys: its readiness goes, its deadline passes, and
what it does not finish is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

from ebbtide.lifecycle.machine import Effect, Event, Exit, Machine, Report, TasksChanged, Tick, next_deadline, step
from ebbtide.vocabulary import PodState

logger = logging.getLogger("ebbtide")

PATROL_S = 10.0
"""How often to look after things that tell nobody when they change."""


class Conductor:
    """Run one machine in a daemon thread.

    Args:
        machine: Where it starts.
        count: Returns the tasks in flight.
        effect: Carries out one effect of the machine as it is after the step, in this thread.
        observe: Called with the machine after each step, before its effects, in this thread.
        patrol: Called every ten seconds, in this thread.
    """

    def __init__(
        self,
        machine: Machine,
        count: Callable[[], int],
        effect: Callable[[Effect, Machine], None],
        observe: Callable[[Machine], None] = lambda _machine: None,
        patrol: Callable[[], None] = lambda: None,
    ) -> None:
        self._machine = machine
        self._count = count
        self._effect = effect
        self._observe = observe
        self._patrol = patrol
        # SimpleQueue may be put to from a signal handler that interrupts another put in the same thread; a lock and a
        # condition may not.
        self._events: SimpleQueue[tuple[Event | Callable[[], None], threading.Event | None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._drained = threading.Event()

    @property
    def machine(self) -> Machine:
        """The machine as of the last step whose effects took hold; read from any thread."""
        return self._machine

    def start(self) -> None:
        # Made here: a thread that was made before a fork cannot be started after it.
        self._thread = threading.Thread(target=self._run, name="ebbtide-conductor", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def post(self, event: Event) -> None:
        """Tell the machine of an event; from any thread, and from signal handlers."""
        self._events.put((event, None))

    def call(self, event: Event, timeout_s: float = 1.0) -> None:
        """Tell the machine of an event and wait until it took hold, which takes well below a millisecond."""
        if not self.alive() or threading.current_thread() is self._thread:
            self.post(event)
            return
        taken = threading.Event()
        self._events.put((event, taken))
        taken.wait(timeout_s)

    def do(self, action: Callable[[], None]) -> None:
        """Call a function in this thread, soon; from any thread, and from signal handlers."""
        self._events.put((action, None))

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until the machine is Drained or Exiting; False when the time is over."""
        return self._drained.wait(min(timeout_s, threading.TIMEOUT_MAX))

    def stop(self) -> None:
        """End the thread; the machine stays as it is."""
        self._events.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        patrol_at = time.monotonic() + PATROL_S
        while True:
            deadline = next_deadline(self._machine)
            until = patrol_at if deadline is None else min(patrol_at, deadline)
            try:
                item = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                item = (Tick(), None)
            if item is None:
                return
            event, taken = item
            # The machine decides on fresh numbers: what the queue says of tasks may be old.
            self._step(TasksChanged(self._count()))
            if callable(event):
                self._guarded("what was asked for", event)
            elif not isinstance(event, TasksChanged):
                self._step(event)
            if taken is not None:
                taken.set()
            if time.monotonic() >= patrol_at:
                patrol_at = time.monotonic() + PATROL_S
                self._guarded("the patrol", self._patrol)

    def _step(self, event: Event) -> None:
        # A step may close intake; the count after that is the first one that proves anything.
        pending: Event | None = event
        while pending is not None:
            machine, effects = step(self._machine, pending, time.monotonic())
            changed = machine.state is not self._machine.state
            # First: a log handler that blocks may keep every effect from being carried out.
            self._guarded("the watch", partial(self._observe, machine))
            # Who reads that intake is closed must find it so; who is told to look must find the new state.
            announcements = [effect for effect in effects if isinstance(effect, Report | Exit)]
            for effect in effects:
                if effect not in announcements:
                    self._carry_out(effect, machine)
            self._machine = machine
            # Before the announcements, which log: whoever waits is not to wait for a handler too.
            if machine.state in {PodState.DRAINED, PodState.EXITING}:
                self._drained.set()
            else:
                self._drained.clear()
            for effect in announcements:
                self._carry_out(effect, machine)
            pending = TasksChanged(self._count()) if changed else None

    def _carry_out(self, effect: Effect, machine: Machine) -> None:
        self._guarded(type(effect).__name__, lambda: self._effect(effect, machine))

    @staticmethod
    def _guarded(what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            # Deadlines are kept whatever else fails.
            logger.exception("ebbtide: %s failed", what)
