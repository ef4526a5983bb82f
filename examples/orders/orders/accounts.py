"""What became of every order: the records of the ledger, and the rules that class them.

Pure: no clock, no I/O. Times are Unix seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

LATE_S = 5.0
"""Seconds after the due time of an order whose client was cut off, during which a completion may still come in."""


class Outcome(StrEnum):
    """How one attempt of a client to place an order ended."""

    ANSWERED = "answered"
    """The service said that the order is done."""
    REFUSED = "refused"
    """The service said no, or was never asked: the client may ask again without risk."""
    CUT = "cut"
    """The service had the order and did not answer: the client cannot know, and must not ask again."""


class Fate(StrEnum):
    """What became of an order; each order has exactly one."""

    FINISHED = "finished"
    """Worked exactly once."""
    DUPLICATED = "duplicated"
    """Worked more than once."""
    LOST = "lost"
    """Accepted and never worked to its end, or answered without having been."""
    TURNED_AWAY = "turned away"
    """Refused until the client gave up. Nothing was begun."""
    OPEN = "open"
    """Not decided yet."""


@dataclass(slots=True)
class Attempt:
    """One try of a client to place an order."""

    at: float
    ended_at: float
    outcome: Outcome


@dataclass(slots=True)
class Execution:
    """One time that a pod worked on an order, as that pod told the ledger."""

    pod: str
    started_at: float
    completed_at: float | None = None


@dataclass(slots=True)
class OrderRecord:
    """Everything that the ledger knows about one order."""

    id: str
    deployment: str
    work_s: float
    sent_at: float
    attempts: list[Attempt] = field(default_factory=list)
    executions: dict[str, Execution] = field(default_factory=dict)
    """By execution id, so that a mark which is delivered twice counts once."""
    settled_at: float | None = None
    """When its client stopped: answered, cut off, or tired of asking."""

    @property
    def completions(self) -> int:
        return sum(execution.completed_at is not None for execution in self.executions.values())

    @property
    def refusals(self) -> int:
        return sum(attempt.outcome is Outcome.REFUSED for attempt in self.attempts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read a record that `to_json` wrote.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is unknown.
        """
        attempts = [
            Attempt(item["at"], item["ended_at"], Outcome(item["outcome"])) for item in document.get("attempts", [])
        ]
        executions = {key: Execution(**item) for key, item in document.get("executions", {}).items()}
        return cls(**{**document, "attempts": attempts, "executions": executions})


def fate(order: OrderRecord, now: float) -> Fate:
    """Class an order by what is known at `now`.

    The ledger's completions go before what the client saw: an order whose answer was cut off after its work was done is
    finished.
    """
    if order.completions > 1:
        return Fate.DUPLICATED
    if order.completions == 1:
        return Fate.FINISHED
    if order.settled_at is None or not order.attempts:
        return Fate.OPEN
    match order.attempts[-1].outcome:
        case Outcome.REFUSED:
            return Fate.TURNED_AWAY
        case Outcome.ANSWERED:
            return Fate.LOST
        case Outcome.CUT:
            # The pod may live on without its client, and still complete the order.
            return Fate.LOST if now > order.settled_at + order.work_s + LATE_S else Fate.OPEN


def count_fates(orders: Iterable[OrderRecord], now: float) -> dict[Fate, int]:
    """Count orders by fate; every fate is a key."""
    counts = Counter(fate(order, now) for order in orders)
    return {key: counts[key] for key in Fate}


def in_flight(orders: Iterable[OrderRecord], at: float) -> Counter[str]:
    """Count the orders that each pod was working on at one moment.

    An execution without a completion ends where its client was cut off; a client that never settled holds it open.
    """
    loads: Counter[str] = Counter()
    for order in orders:
        for execution in order.executions.values():
            ended_at = execution.completed_at if execution.completed_at is not None else order.settled_at
            if execution.started_at <= at and (ended_at is None or at < ended_at):
                loads[execution.pod] += 1
    return loads
