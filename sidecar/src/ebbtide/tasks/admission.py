"""The way in: applies the limits of a scope and of all around it to one task at a time.

Each scope has a gate, and the process has one around them all. A gate with limits of its own keeps count of what it let
in; the others have nothing to do. So the usual way in asks two things: whether the process has room, and a token.

What is admitted at the same moment in several threads may exceed a rate by one for each of them: a lock would cost
every task more than that is worth. The number of tasks in flight is exact.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from ebbtide.errors import Refused
from ebbtide.tasks.counted import CROWD
from ebbtide.tasks.entries import kind_of
from ebbtide.tasks.limits import BREAKER_PAUSE_S, Admission, Breaker, Limits, TokenBucket
from ebbtide.tasks.line import Line

if TYPE_CHECKING:
    from ebbtide.tasks.registry import Registry
    from ebbtide.tasks.scope import Scope

logger = logging.getLogger("ebbtide")

LATE_FACTOR = 2
"""During a drain what live tasks start may fill so many times the limit: it is needed for the end of admitted work."""
SHED_FACTOR = 2
"""Tasks that were shed and still clean up may add so much to the limit; then new ones are refused."""
RETRY_S = 1.0
"""Told to who is refused where nothing is known about how long tasks take."""
RETRY_LEAST_S = 0.05
RETRY_MOST_S = 60.0

DRAINING, LIMIT, RATE, BREAKER = WHY = ("draining", "limit", "rate", "breaker")
"""Reasons of a refusal."""


class Gate:
    """Decide who comes in, and take note of who left.

    Args:
        registry: Where what is in flight is counted.
        limits: The gate's own.
        parent: The gate around this one; None: the process's.
        name: Of the scope; empty for the process.

    Attributes:
        parent: The gate around this one.
        numbers: Of the entries that it let in, where it has a limit of its own for them.
        alone: Of all limits only those of the process hold here, and one breaker.
        plain: `alone`, and no task timed out lately: nothing is to be asked or told here.
        max_tasks: Own limit; infinite without one.
        room: How many tasks may be in flight, by that limit, while each is counted in its last step.
        waiters: Who waits for a task to leave, in order.
        sleepers: Who waits for time to pass; the process's gate has them all.
        given_up: Numbers of entries that are in flight although their time-out is counted.
    """

    def __init__(self, registry: Registry, limits: Limits, parent: Gate | None = None, name: str = "") -> None:
        self._registry = registry
        self.parent = parent
        self.name = name
        self._inner: weakref.WeakValueDictionary[int, Gate] = weakref.WeakValueDictionary()
        self.numbers: dict[int, None] | None = None
        self.root: Gate = self if parent is None else parent.root
        self.bucket = TokenBucket(math.inf, 1)
        self.waiters = Line()
        self.sleepers = Line()
        self._own_breaker: Breaker | None = None
        self.given_up: set[int] = set()
        self._apply(limits)
        if parent is not None:
            parent.take_in(self)

    @property
    def limits(self) -> Limits:
        """What holds here: of each limit the tightest on the way out."""
        return self._limits if self.parent is None else self._limits.inside(self.parent.limits)

    @property
    def own_limits(self) -> Limits:
        return self._limits

    @property
    def held(self) -> int:
        """Tasks and threads in flight that count against the limit of this gate."""
        if self.numbers is not None:
            return len(self.numbers)
        if self.parent is None:
            return len(self._registry.live) - self._registry.blocks
        return len(self._inside())

    @property
    def stopped(self) -> bool:
        """Whether a breaker of its own lets nothing start here."""
        return self._own_breaker is not None and self._own_breaker.opened_at is not None

    def change(self, limits: Limits) -> None:
        """Go on with other limits of its own; whoever is in stays in."""
        self._apply(limits)
        if self.numbers is not None:
            # Filled after it is there, and cleaned after that: in other threads tasks come and go meanwhile.
            self.numbers.update(dict.fromkeys(self._inside()))
            for number in list(self.numbers):
                if number not in self._registry.live:
                    self.numbers.pop(number, None)
        self.root.wake_everybody()

    def _apply(self, limits: Limits) -> None:
        self._limits = limits
        self.max_tasks: float = limits.max_tasks or math.inf
        self.room = min(limits.max_tasks or CROWD, CROWD)
        rate_per_s = limits.rate_per_s or math.inf
        burst = limits.burst or max(1, math.ceil(min(rate_per_s, 1e9)))
        self.bucket.change(rate_per_s, burst, monotonic())
        counts = self.parent is not None and limits.max_tasks is not None
        self.numbers = (self.numbers or {}) if counts else None
        self.settle()

    def admit(self, number: int, now: float, scope: Scope) -> None:
        """Let an entry in that is in the registry already.

        Raises:
            Refused: There is no room; the entry is out of the registry again.
        """
        refusal = self._ask(number, now, scope)
        if refusal is not None:
            self._registry.withdraw(number)
            self._turn_away(refusal)

    def admit_late(self, number: int, scope: Scope) -> Refused | None:
        """Let in what live work starts while the process drains; no rate and no breaker may keep that from its end."""
        for gate in self.outwards():
            if gate.numbers is not None:
                gate.numbers[number] = None
            if gate.held > gate.max_tasks * LATE_FACTOR:
                self._forget(number)
                return Refused(LIMIT, _room_in_s(scope, gate), scope.name)
        return None

    async def wait(self, number: int, scope: Scope) -> None:
        """Let an entry in as soon as there is room; it is in the registry when this returns.

        Raises:
            Refused: There was no room in time, or the process drains.
        """
        registry = self._registry
        now = monotonic()
        deadline_at = now + (self.limits.wait_s or 0.0)
        buckets = [gate.bucket for gate in self.outwards()]
        # Tokens are reserved in the order of arrival, so that those who wait for them do not race for each.
        token_at = now + max(bucket.reserve(now) for bucket in buckets)
        try:
            if token_at > deadline_at and registry.intake_open:
                self._turn_away(Refused(RATE, max(RETRY_LEAST_S, token_at - now), scope.name))
            in_front = False
            while True:
                # In only while it asks: who waits is no work in flight.
                registry.live[number] = None
                if not registry.intake_open:
                    registry.question(number, scope)
                    return
                now = monotonic()
                line = self._line(in_front=in_front)
                refusal = None
                if now >= token_at and line is None:
                    refusal = self._ask(number, now, scope, paid=True)
                    if refusal is None:
                        return
                registry.withdraw(number)
                if now < token_at:
                    await self.root.sleepers.join(token_at - now)
                    continue
                refusal = refusal or Refused(LIMIT, _room_in_s(scope, self), scope.name)
                left_s = deadline_at - now
                if left_s <= 0 or (refusal.why == BREAKER and refusal.retry_after_s > left_s):
                    self._turn_away(refusal)
                if refusal.why == BREAKER:
                    await self.root.sleepers.join(refusal.retry_after_s)
                else:
                    await (line or self._full()).waiters.join(left_s, in_front=in_front)
                    in_front = True
        except BaseException:
            for bucket in buckets:
                bucket.give_back()
            # It may have been woken for room at one gate, and have waited at another since then.
            for gate in self.outwards():
                if gate.waiters.queue and gate.held < gate.max_tasks:
                    gate.waiters.wake_one()
            raise

    def leave(self, number: int, outcome: str) -> None:
        """Take note of an end; `outcome` is that of the registry."""
        if outcome == "timed_out" and number not in self.given_up:
            self.timed_out(number, monotonic())
        self.given_up.discard(number)
        for breaker in self.breakers:
            if not breaker.row:
                continue
            if outcome in {"finished", "failed"}:
                breaker.ended(number)
                if not breaker.row:
                    self.root.mark_plain()
            elif outcome != "timed_out":
                breaker.dropped(number)
        self._forget(number)
        for gate in self.outwards():
            if gate.waiters.queue:  # mostly nobody waits, and a crowd that ends passes here one by one
                gate.waiters.wake_one()

    def gave_up(self, number: int, now: float) -> None:
        """Count the time-out of an entry that goes on all the same; its end is no second one."""
        self.given_up.add(number)
        self.timed_out(number, now)

    def timed_out(self, number: int, now: float) -> None:
        """Count a time-out against every breaker on the way out."""
        for breaker in self.breakers:
            if breaker.timed_out(number, now):
                logger.error(
                    "ebbtide: %d tasks of %s in a row timed out: nothing is started there for %g s",
                    breaker.row,
                    self.name,
                    breaker.pause_s,
                )
        self.root.mark_plain()

    def take_in(self, gate: Gate) -> None:
        """Remember a gate inside this one, as long as somebody has it."""
        self._inner[id(gate)] = gate

    def inner(self) -> list[Gate]:
        """Return the gates inside this one, from any thread: the copy of the references is atomic."""
        return [gate for reference in self._inner.valuerefs() if (gate := reference()) is not None]

    def every(self) -> Iterator[Gate]:
        """Return this gate and all inside it."""
        yield self
        for gate in self.inner():
            yield from gate.every()

    def view(self) -> dict[str, Any]:
        """Return what holds here, and how much of it is used, as JSON."""
        return {
            "scope": self.name,
            "in_flight": self.held,
            "waiting": len(self.waiters),
            "breaker": self.breakers[0].state(monotonic()),
            "breaker_trips": self.breakers[0].trips,
            "limits": self.limits.to_json(),
            "own": self.own_limits.to_json(),
        }

    def begin_anew(self) -> list[object]:
        """Forget, in a forked child, who came in and who waits in the parent; return what must not be thrown away."""
        kept: list[object] = []
        for gate in self.every():
            kept += [gate.waiters, gate.sleepers]
            gate.waiters, gate.sleepers = Line(), Line()
            gate.given_up.clear()
            if gate.numbers is not None:
                gate.numbers.clear()
        return kept

    def mark_plain(self) -> None:
        """Work out `plain` for this gate and those inside it."""
        self.plain: bool = self.alone and not self.breakers[0].row
        for gate in self.inner():
            gate.mark_plain()

    def wake_everybody(self) -> None:
        """Let all who wait at this gate and inside it ask again."""
        self.waiters.wake_all()
        self.sleepers.wake_all()
        for gate in self.inner():
            gate.wake_everybody()

    def _turn_away(self, refusal: Refused) -> NoReturn:
        raise self._registry.turned_away(refusal)

    def _line(self, *, in_front: bool) -> Gate | None:
        """Return a gate on the way out where somebody waits already; None where it is one's own turn."""
        return None if in_front else next((gate for gate in self.outwards() if gate.waiters), None)

    def _full(self) -> Gate:
        return next((gate for gate in self.outwards() if gate.held >= gate.max_tasks), self.root)

    def _ask(self, number: int, now: float, scope: Scope, *, paid: bool = False) -> Refused | None:
        gates = list(self.outwards())
        for breaker in self.breakers:
            if not breaker.admits(now):
                return Refused(BREAKER, breaker.wait_s(now), scope.name)
        for gate in gates:
            if gate.numbers is not None:
                gate.numbers[number] = None
        full = [gate for gate in gates if gate.held > gate.max_tasks]
        refusal: Refused | None = None
        taken: list[TokenBucket] = []
        if full and not self._may_shed(full):
            refusal = Refused(LIMIT, _room_in_s(scope, full[0]), scope.name)
        else:
            for gate in () if paid else gates:
                if not gate.bucket.take(now):
                    refusal = Refused(RATE, max(RETRY_LEAST_S, gate.bucket.wait_s(now)), scope.name)
                    break
                taken.append(gate.bucket)
        # Last, and once: nothing is shed for who is refused, and what is shed leaves by each of these gates.
        if refusal is None and full and not scope.shed_oldest():
            refusal = Refused(LIMIT, _room_in_s(scope, full[0]), scope.name)
        if refusal is not None:
            for bucket in taken:
                bucket.give_back()
            self._forget(number)
            return refusal
        for breaker in self.breakers:
            breaker.admitted(number)
        return None

    def _may_shed(self, full: list[Gate]) -> bool:
        if self.limits.admission is not Admission.SHED:
            return False
        return all(gate.held <= gate.max_tasks * SHED_FACTOR for gate in full)

    def _forget(self, number: int) -> None:
        for gate in self.outwards():
            if gate.numbers is not None:
                gate.numbers.pop(number, None)

    def outwards(self) -> Iterator[Gate]:
        """Return this gate and all around it."""
        gate: Gate | None = self
        while gate is not None:
            yield gate
            gate = gate.parent

    def _inside(self) -> list[int]:
        inside = [item for item in self._registry.entries() if self in item.scope.gate.outwards()]
        return [item.number for item in inside if kind_of(item) != "block"]

    def settle(self) -> None:
        """Work out, here and inside, what follows from limits that changed."""
        parent = self.parent
        effective = self.limits
        pause_s = BREAKER_PAUSE_S if effective.breaker_pause_s is None else effective.breaker_pause_s
        # A scope that times out is no reason to stop its neighbours: each at the top has a breaker of its own.
        if parent is None or parent.parent is None or self._limits.breaker_timeouts is not None:
            timeouts = None if parent is None else effective.breaker_timeouts
            if self._own_breaker is None:
                self._own_breaker = Breaker(timeouts, pause_s)
            self._own_breaker.change(timeouts, pause_s)
        else:
            self._own_breaker = None
        outer = () if parent is None or parent.parent is None else parent.breakers
        self.breakers: tuple[Breaker, ...] = outer if self._own_breaker is None else (self._own_breaker, *outer)
        own_rules = self._limits.max_tasks is not None or self._limits.rate_per_s is not None
        self.alone: bool = parent is None or (
            len(self.breakers) == 1 and not own_rules and (parent is self.root or parent.alone)
        )
        self.mark_plain()
        for gate in self.inner():
            gate.settle()


def _room_in_s(scope: Scope, gate: Gate) -> float:
    """Estimate the seconds until one of the tasks in flight has ended."""
    durations = scope.durations.copy()
    if not durations:
        return RETRY_S
    next_end_s = sum(durations) / len(durations) / max(1.0, min(gate.max_tasks, gate.held))
    return min(RETRY_MOST_S, max(RETRY_LEAST_S, next_end_s))
