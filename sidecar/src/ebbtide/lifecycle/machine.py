"""The states of a pod on its way out, as a pure function: `step(machine, event, now)` gives a machine and effects.

    Starting -> Serving -> Quiescing -> Draining -> Cancelling -> Drained -> Exiting
                   ^___________|___________|_______(clean)________|

It keeps no clock and does no I/O: `now` is monotonic seconds, and what is to be done is data. One thread at a time owns
a machine. Two promises of whoever carries out the effects make it sound:

- Before each step it tells the count (`TasksChanged`), so that decisions rest on fresh numbers.
- It answers `CloseIntake` with a count taken *after* intake closed. Until then a count of zero proves nothing: a task
  may have been admitted in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from ebbtide.vocabulary import DRAIN_STATES, Desired, PodState

if TYPE_CHECKING:
    from ebbtide.protocol import Order

COLLECT_S = 1.0
"""Seconds before its own deadline at which a drained pod that nobody collected exits by itself.

Where the operator lives, it releases a drained pod within milliseconds. Where it does not, the exit of the container is
what wakes the ReplicaSet controller, and the kubelet takes up to a second to tell of it.
"""


class Source(StrEnum):
    """Who asked for a drain."""

    ORDER = "order"
    """The operator."""
    SIGNAL = "signal"
    PRESTOP = "prestop"
    API = "api"
    """A person, or the application itself."""
    EXIT = "exit"
    """The application leaves its runtime."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a pod drains; the first reason of a drain stays."""

    source: Source
    text: str = ""

    def __str__(self) -> str:
        return f"{self.source}: {self.text}" if self.text else str(self.source)


@dataclass(frozen=True, slots=True)
class Durations:
    """How long each part of a drain may take, in seconds."""

    quiesce_s: float = 0.0
    drain_timeout_s: float = 60.0
    cancel_grace_s: float = 10.0

    @property
    def budget_s(self) -> float:
        return self.quiesce_s + self.drain_timeout_s + self.cancel_grace_s


class Bare:
    """What an event or an effect is that says nothing but itself; a tenth of the import time of a dataclass."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Started(Bare):
    """The application can serve."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """The operator's order, new or seen before."""

    order: Order


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Somebody in or near the pod asks for a drain."""

    reason: Reason
    durations: Durations | None = None
    """None: the machine's own where this starts the drain, no change where one is under way."""
    leave: bool = False
    """True: exit once drained. Always so for a signal and preStop: the kubelet ends this container."""


class UndrainRequested(Bare):
    """A person takes the drain back."""


@dataclass(frozen=True, slots=True)
class TasksChanged:
    """So many tasks are in flight."""

    active: int


class StoreRestarted(Bare):
    """The store lost its memory: epochs and generations count from the beginning again."""


class Tick(Bare):
    """Time passed."""


Event = Started | Ordered | DrainRequested | UndrainRequested | TasksChanged | StoreRestarted | Tick


@dataclass(frozen=True, slots=True)
class SetReady:
    """Answer readiness probes accordingly."""

    ready: bool


class CloseIntake(Bare):
    """Refuse new roots; answer with `TasksChanged`."""


class OpenIntake(Bare):
    """Admit tasks again."""


@dataclass(frozen=True, slots=True)
class CancelTasks:
    """Cancel what is in flight, once."""

    reason: str


class AbandonTasks(Bare):
    """Count what is still in flight as abandoned."""


class Report(Bare):
    """Tell the operator."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Let the application leave; where `insist`, see to it that the process ends."""

    insist: bool


Effect = SetReady | CloseIntake | OpenIntake | CancelTasks | AbandonTasks | Report | Exit


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that the rules remember. Times are monotonic seconds."""

    state: PodState = PodState.STARTING
    defaults: Durations = Durations()
    active: int = 0
    started: bool = False
    generation: int = 0
    epoch: int = 0
    reason: Reason | None = None
    drain_started_at: float | None = None
    intake_until: float = 0.0
    cancel_at: float = 0.0
    deadline_at: float = 0.0
    """End of the whole budget: whatever is left then is abandoned."""
    exit_at: float | None = None
    """When a drained pod leaves uncollected; None: it waits for its end."""
    forced: bool = False
    """Tasks were cancelled for the drain: this process does not serve again."""
    leaving: bool = False
    """Exit once drained; nothing takes that back."""
    insist: bool = False
    """The end was asked for from outside: the process must not outlive it."""
    counted: bool = False
    """`active` was taken after intake closed."""

    @property
    def draining(self) -> bool:
        """True from the start of a drain to the end of the process."""
        return self.state in DRAIN_STATES or self.state is PodState.EXITING


Step = tuple[Machine, tuple[Effect, ...]]


def step(machine: Machine, event: Event, now: float) -> Step:
    """Return what becomes of a machine through an event, and what is to be done, in order.

    Args:
        machine: The machine so far.
        event: What happened.
        now: Monotonic seconds; must not run backwards from step to step.
    """
    effects: tuple[Effect, ...] = ()
    match event:
        case Started():
            machine, effects = _start(machine)
        case Ordered(order):
            machine, effects = _obey(machine, order, now)
        case DrainRequested(reason, durations, leave):
            machine, effects = _drain(machine, reason, durations, now)
            machine = _mark_leaving(machine, reason.source, leave=leave)
        case UndrainRequested():
            machine, effects = _undrain(machine)
        case TasksChanged(active):
            machine = _count(machine, active)
        case StoreRestarted():
            machine, effects = replace(machine, generation=0, epoch=0), (Report(),)
        case Tick():
            pass
    machine, more = _advance(machine, now)
    return machine, effects + more


def next_deadline(machine: Machine) -> float | None:
    """Return when the machine wants a `Tick`; None: only an event can move it."""
    match machine.state:
        case PodState.QUIESCING:
            return machine.intake_until
        case PodState.DRAINING:
            return machine.cancel_at if machine.active else machine.deadline_at
        case PodState.CANCELLING:
            return machine.deadline_at
        case PodState.DRAINED:
            return machine.exit_at
        case _:
            return None


def _start(machine: Machine) -> Step:
    if machine.started:
        return machine, ()
    machine = replace(machine, started=True)
    if machine.state is not PodState.STARTING:
        return machine, ()
    return replace(machine, state=PodState.SERVING), (SetReady(ready=True), Report())


def _obey(machine: Machine, order: Order, now: float) -> Step:
    stale = order.epoch < machine.epoch or order.generation <= machine.generation
    if stale or machine.state is PodState.EXITING:
        return machine, ()
    machine = replace(machine, generation=order.generation, epoch=order.epoch)
    if order.desired is Desired.SERVE:
        machine, effects = _undrain(machine)
        return machine, (*effects, Report())
    durations = Durations(order.quiesce_s, order.drain_timeout_s, order.cancel_grace_s)
    if order.desired is Desired.CANCEL:
        durations = Durations(0.0, 0.0, order.cancel_grace_s)
    machine, effects = _drain(machine, Reason(Source.ORDER, order.reason), durations, now)
    if order.leave:
        machine = replace(machine, leaving=True, insist=True)
    exit_at = now + max(0.0, durations.budget_s - COLLECT_S)
    if machine.exit_at is not None:
        exit_at = min(exit_at, machine.exit_at)
    return replace(machine, exit_at=exit_at), (*effects, Report())


def _drain(machine: Machine, reason: Reason, durations: Durations | None, now: float) -> Step:
    if machine.state is PodState.EXITING:
        return machine, ()
    if machine.state in DRAIN_STATES:
        return (machine if durations is None else _shorten(machine, durations, now)), ()
    spend = durations or machine.defaults
    machine = replace(
        machine,
        state=PodState.QUIESCING,
        reason=reason,
        drain_started_at=now,
        intake_until=now + spend.quiesce_s,
        cancel_at=now + spend.quiesce_s + spend.drain_timeout_s,
        deadline_at=now + spend.budget_s,
    )
    return machine, (SetReady(ready=False), Report())


def _shorten(machine: Machine, durations: Durations, now: float) -> Machine:
    # The least of each pair keeps the three in order.
    return replace(
        machine,
        intake_until=min(machine.intake_until, now + durations.quiesce_s),
        cancel_at=min(machine.cancel_at, now + durations.quiesce_s + durations.drain_timeout_s),
        deadline_at=min(machine.deadline_at, now + durations.budget_s),
    )


def _mark_leaving(machine: Machine, source: Source, *, leave: bool) -> Machine:
    if machine.state is PodState.EXITING:
        return machine
    deletion = source in {Source.SIGNAL, Source.PRESTOP}
    return replace(
        machine,
        leaving=machine.leaving or leave or deletion,
        insist=machine.insist or deletion,
    )


def _undrain(machine: Machine) -> Step:
    if machine.state not in DRAIN_STATES or machine.leaving:
        return machine, ()
    if machine.forced:
        # What was cancelled cannot be brought back in this process: a new one serves instead.
        return replace(machine, leaving=True, insist=True), ()
    fresh = Machine(
        state=PodState.SERVING if machine.started else PodState.STARTING,
        defaults=machine.defaults,
        active=machine.active,
        started=machine.started,
        generation=machine.generation,
        epoch=machine.epoch,
    )
    opened = () if machine.state is PodState.QUIESCING else (OpenIntake(),)
    return fresh, (*opened, SetReady(ready=machine.started), Report())


def _count(machine: Machine, active: int) -> Machine:
    closed = machine.state in DRAIN_STATES and machine.state is not PodState.QUIESCING
    return replace(machine, active=active, counted=closed)


def _advance(machine: Machine, now: float) -> Step:
    """Take every step that is due: after a long sleep several are."""
    effects: list[Effect] = []
    while True:
        due = _due(machine, now)
        if due is None:
            return machine, tuple(effects)
        machine, more = due
        effects += more


def _due(machine: Machine, now: float) -> Step | None:
    match machine.state:
        case PodState.QUIESCING if now >= machine.intake_until:
            return replace(machine, state=PodState.DRAINING, counted=False), (CloseIntake(), Report())
        case PodState.DRAINING | PodState.CANCELLING if machine.counted and machine.active == 0:
            return replace(machine, state=PodState.DRAINED), (Report(),)
        case PodState.DRAINING if now >= machine.cancel_at and machine.active:
            text = f"drain timeout passed ({machine.reason})"
            return replace(machine, state=PodState.CANCELLING, forced=True), (CancelTasks(text), Report())
        case PodState.DRAINING | PodState.CANCELLING if now >= machine.deadline_at:
            abandon = (AbandonTasks(),) if machine.active else ()
            return replace(machine, state=PodState.DRAINED), (*abandon, Report())
        case PodState.DRAINED if machine.leaving:
            return replace(machine, state=PodState.EXITING), (Exit(machine.insist), Report())
        case PodState.DRAINED if machine.exit_at is not None and now >= machine.exit_at:
            return replace(machine, state=PodState.EXITING, leaving=True, insist=True), (Exit(insist=True), Report())
        case _:
            return None
