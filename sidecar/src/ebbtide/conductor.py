"""The thread that owns the machine: takes events, steps, carries out effects, and keeps deadlines.

It is no part of the event loop, so a loop that is blocked still obeys: its readiness goes, its deadline passes, and
what it does not finish is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from ebbtide.machine import Effect, Event, Machine, TasksChanged, Tick, next_deadline, step
from ebbtide.protocol import PodState

logger = logging.getLogger("ebbtide")


class Conductor:
    """Run one machine in a daemon thread.

    Args:
        machine: Where it starts.
        count: Returns the tasks in flight.
        effect: Carries out one effect, in this thread.
    """

    def __init__(self, machine: Machine, count: Callable[[], int], effect: Callable[[Effect], None]) -> None:
        self._machine = machine
        self._count = count
        self._effect = effect
        # SimpleQueue may be put to from a signal handler that interrupts another put in the same thread.
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ebbtide-conductor", daemon=True)
        self._drained = threading.Event()

    @property
    def machine(self) -> Machine:
        """The machine as of the last step; read from any thread."""
        return self._machine

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def post(self, event: Event) -> None:
        """Tell the machine of an event; from any thread, and from signal handlers."""
        self._events.put(event)

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until the machine is Drained or Exiting; False when the time is over."""
        return self._drained.wait(min(timeout_s, threading.TIMEOUT_MAX))

    def stop(self) -> None:
        """End the thread; the machine stays as it is."""
        self._events.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        while True:
            deadline = next_deadline(self._machine)
            try:
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
                event = self._events.get(timeout=timeout)
            except Empty:
                event = Tick()
            if event is None:
                return
            # The machine decides on fresh numbers: what the queue says of tasks may be old.
            if not isinstance(event, TasksChanged):
                self._step(TasksChanged(self._count()))
            self._step(event if not isinstance(event, TasksChanged) else TasksChanged(self._count()))

    def _step(self, event: Event) -> None:
        # A step may close intake; the count after that is the first one that proves anything.
        pending: Event | None = event
        while pending is not None:
            before = self._machine.state
            self._machine, effects = step(self._machine, pending, time.monotonic())
            if self._machine.state in {PodState.DRAINED, PodState.EXITING}:
                self._drained.set()
            else:
                self._drained.clear()
            for effect in effects:
                self._carry_out(effect)
            pending = TasksChanged(self._count()) if self._machine.state is not before else None

    def _carry_out(self, effect: Effect) -> None:
        try:
            self._effect(effect)
        except Exception:
            # The drain goes on whatever an observer of the application's does.
            logger.exception("ebbtide: %s failed", type(effect).__name__)
