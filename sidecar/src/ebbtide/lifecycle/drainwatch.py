"""Watches a drain for its report: how long each state took, who was slow, and where who did not end was."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType

from ebbtide.lifecycle.drainreport import DrainReport, Finisher, HookRecord, PhaseTime, Straggler
from ebbtide.lifecycle.machine import Machine
from ebbtide.stacks.frames import all_threads, place_of, stack_of
from ebbtide.tasks.entries import Live, frames_of, kind_of, name_of
from ebbtide.tasks.registry import Registry
from ebbtide.vocabulary import TASK_OUTCOMES, Outcome, PodState

SLOWEST = 10
STRAGGLERS = 20
INNERMOST = 12
"""Frames kept of each straggler."""

TIMED = (PodState.QUIESCING, PodState.DRAINING, PodState.CANCELLING)


_Ended = tuple[float, int, float, str, Live]
"""How long it held the drain, its number, its age, how it ended, itself: no two of one number are compared."""


@dataclass(slots=True)
class _Course:
    """One drain, from its start on. Times are monotonic seconds."""

    reason: str
    began_at: float
    unix_at: float
    planned_s: Mapping[PodState, float]
    active_at_start: int
    tally_at_start: Mapping[str, int]
    late_at_start: int
    state: PodState
    since: float
    took_s: dict[PodState, float] = field(default_factory=dict)
    last: deque[_Ended] = field(default_factory=lambda: deque(maxlen=SLOWEST))
    """Of what was there when it began, those that ended last, who are the slowest."""
    slowest: list[_Ended] = field(default_factory=list)
    """Of what came later, the slowest, as a heap."""
    stragglers: dict[int, Straggler] = field(default_factory=dict)
    stragglers_in_all: int = 0
    forced: bool = False
    returned: bool = False
    ended_at: float | None = None
    over: DrainReport | None = None
    """The report, once it stands."""


class DrainWatch:
    """Follow the drains of one process, the last of which can be asked for.

    Args:
        registry: What is in flight.
        hooks: Returns how the hooks went that ran so far.
    """

    def __init__(self, registry: Registry, hooks: Callable[[], Sequence[HookRecord]] = lambda: ()) -> None:
        self._registry = registry
        self._hooks = hooks
        self._course: _Course | None = None
        self._draining = False
        self._lock = threading.Lock()

    def observe(self, machine: Machine) -> None:
        """Take note of a step, before its effects are carried out; all calls come from one thread."""
        now = time.monotonic()
        if machine.draining and not self._draining:
            self._course = self._begin(machine, now)
            self._registry.on_end = self._ended
        self._draining = machine.draining
        course = self._course
        if course is None or course.ended_at is not None:
            return
        course.forced = course.forced or machine.forced
        if machine.state is course.state and machine.state in TIMED:
            return
        if course.state in TIMED:
            course.took_s[course.state] = now - course.since
        course.state, course.since = machine.state, now
        if machine.state not in TIMED:
            course.returned = not machine.draining
            course.ended_at = now

    def look_at_stragglers(self) -> None:
        """Take note of what is in flight and where: just before it is cancelled, and before it is abandoned."""
        course = self._course
        if course is None:
            return
        now, threads = time.monotonic(), all_threads()
        left = [item for item in self._registry.entries() if item.number not in self._registry.abandoned]
        with self._lock:
            course.stragglers_in_all = max(course.stragglers_in_all, len(left))
            found = {item.number: _straggler(item, now, threads) for item in left[:STRAGGLERS]}
            # Who never ends is worth more than who ended late.
            kept = list((found | {number: late for number, late in course.stragglers.items() if late.outcome}).items())
            course.stragglers = dict(kept[:STRAGGLERS])

    def settle(self) -> DrainReport | None:
        """Return the report of a drain that is over, once; after its effects were carried out."""
        course = self._course
        if course is None or course.ended_at is None or course.over is not None:
            return None
        self._registry.on_end = None
        course.over = self._report(course)
        course.last.clear()
        course.slowest.clear()  # the report has their names: nobody needs to keep what they returned
        return course.over

    def report(self) -> DrainReport | None:
        """Return the report of the drain that is under way, or else of the last one; None: there was none."""
        course = self._course
        if course is None:
            return None
        hooks = tuple(self._hooks())
        return self._report(course) if course.over is None else replace(course.over, hooks=hooks)

    def _begin(self, machine: Machine, now: float) -> _Course:
        began_at = now if machine.drain_started_at is None else machine.drain_started_at
        return _Course(
            reason=str(machine.reason or ""),
            began_at=began_at,
            unix_at=time.time() - (now - began_at),
            planned_s={
                PodState.QUIESCING: machine.intake_until - began_at,
                PodState.DRAINING: machine.cancel_at - machine.intake_until,
                PodState.CANCELLING: machine.deadline_at - machine.cancel_at,
            },
            active_at_start=len(self._registry),
            tally_at_start=self._registry.tally,
            late_at_start=self._registry.late_arrivals,
            state=PodState.QUIESCING,
            since=began_at,
        )

    def _ended(self, item: Live, outcome: str) -> None:
        """Take note of an end during the drain, in whatever thread."""
        course = self._course
        if course is None:
            return
        now = time.monotonic()
        age_s = now - item.started_at
        # Looked at without the lock, as the rest of the way of a crowd: each of them passes here.
        if item.number in course.stragglers:
            with self._lock:
                straggler = course.stragglers.get(item.number)
                if straggler is not None:
                    course.stragglers[item.number] = replace(straggler, outcome=outcome)
        if item.started_at <= course.began_at:
            course.last.append((now - course.began_at, item.number, age_s, outcome, item))
            return
        with self._lock:
            if len(course.slowest) == SLOWEST and age_s <= course.slowest[0][0]:
                return
            push = heapq.heappush if len(course.slowest) < SLOWEST else heapq.heapreplace
            push(course.slowest, (age_s, item.number, age_s, outcome, item))

    def _report(self, course: _Course) -> DrainReport:
        now = time.monotonic()
        tally = self._registry.tally
        counts = {
            outcome: ended
            for outcome in TASK_OUTCOMES
            if (ended := tally.get(outcome, 0) - course.tally_at_start.get(outcome, 0))
        }
        took_s = dict(course.took_s)
        if course.ended_at is None:
            took_s[course.state] = now - course.since
        with self._lock:
            slow = heapq.nlargest(SLOWEST, [*list(course.last), *course.slowest])
            stragglers = [
                replace(late, outcome=late.outcome or ("abandoned" if number in self._registry.abandoned else None))
                for number, late in course.stragglers.items()
            ]
        return DrainReport(
            outcome=_outcome(course, counts),
            reason=course.reason,
            started_at=course.unix_at,
            took_s=(now if course.ended_at is None else course.ended_at) - course.began_at,
            budget_s=sum(course.planned_s.values()),
            phases=tuple(
                PhaseTime(str(state), course.planned_s[state], took_s[state]) for state in TIMED if state in took_s
            ),
            active_at_start=course.active_at_start,
            active=len(self._registry),
            counts=counts,
            late_arrivals=self._registry.late_arrivals - course.late_at_start,
            slowest=tuple(_finisher(ended) for ended in slow),
            stragglers=tuple(stragglers),
            stragglers_in_all=course.stragglers_in_all,
            hooks=tuple(self._hooks()),
        )


def _outcome(course: _Course, counts: Mapping[str, int]) -> Outcome | None:
    if course.ended_at is None:
        return None
    if course.returned:
        return Outcome.RETURNED
    if counts.get("abandoned"):
        return Outcome.ABANDONED
    return Outcome.CANCELLED if course.forced else Outcome.CLEAN


def _finisher(ended: _Ended) -> Finisher:
    held_s, _, age_s, outcome, item = ended
    return Finisher(name_of(item), kind_of(item), item.scope.name, age_s, held_s, outcome)


def _straggler(item: Live, now: float, threads: Mapping[int, FrameType]) -> Straggler:
    stack = stack_of(frames_of(item, threads))
    return Straggler(
        name=name_of(item),
        kind=kind_of(item),
        scope=item.scope.name,
        age_s=now - item.started_at,
        where=place_of(stack),
        stack=tuple(str(step) for step in stack[-INNERMOST:]),
    )
