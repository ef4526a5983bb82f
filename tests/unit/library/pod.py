"""A pod without threads: carries out the machine's effects on plain numbers, as the runtime does on real ones."""

from __future__ import annotations

from typing import Any

from ebbtide.lifecycle.machine import (
    AbandonTasks,
    CancelTasks,
    CloseIntake,
    Effect,
    Event,
    Exit,
    Machine,
    OpenIntake,
    Report,
    SetReady,
    TasksChanged,
    Tick,
    next_deadline,
    step,
)
from ebbtide.protocol import Desired, Order, PodState


def order(generation: int = 1, epoch: int = 1, desired: Desired = Desired.DRAIN, **fields: Any) -> Order:
    return Order(desired=desired, generation=generation, epoch=epoch, **fields)


class Pod:
    """A pod with `active` tasks at the time `now`."""

    def __init__(self, machine: Machine | None = None, *, answers_close: bool = True) -> None:
        self.machine = machine or Machine()
        self.now = 1000.0
        self.active = 0
        self.ready = False
        self.open = True
        self.cancels = 0
        self.abandoned = 0
        self.exits = 0
        self.insisted = False
        self._answers_close = answers_close

    @property
    def state(self) -> PodState:
        return self.machine.state

    def tell(self, event: Event) -> list[Effect]:
        """Step as the conductor does: fresh count, event, and a count after intake closed."""
        effects: list[Effect] = []
        events: list[Event] = [event]
        if self._answers_close:
            events.insert(0, TasksChanged(self.active))
        while events:
            self.machine, due = step(self.machine, events.pop(0), self.now)
            effects += due
            for effect in due:
                self._carry_out(effect)
            if CloseIntake() in due and self._answers_close:
                events.insert(0, TasksChanged(self.active))
        return effects

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case SetReady(ready):
                self.ready = ready
            case CloseIntake():
                self.open = False
            case OpenIntake():
                self.open = True
            case CancelTasks():
                self.cancels += 1
            case AbandonTasks():
                self.abandoned += self.active
            case Report():
                pass
            case Exit(insist):
                self.exits += 1
                self.insisted = insist

    def pass_time(self, seconds: float) -> None:
        """Let time go by, with a tick at each deadline on the way."""
        end = self.now + seconds
        while (at := next_deadline(self.machine)) is not None and at <= end:
            self.now = max(self.now, at)
            self.tell(Tick())
        self.now = end
        self.tell(Tick())

    def finish(self) -> None:
        self.active -= 1
        self.tell(TasksChanged(self.active))

    def finish_all(self) -> None:
        self.active = 0
        self.tell(TasksChanged(0))
