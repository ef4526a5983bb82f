"""What looks like a leak: pure rules over what is known of each unit of work. Ages and intervals are seconds.

Each rule asks for more than one sign, because what lasts long is no leak by itself. An entry falls under one rule at
most, the first in the order of `judge`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import NamedTuple

from ebbtide.tasks.heartbeats import missed


class Rule(StrEnum):
    """Why something is suspected."""

    SWALLOWED = "swallowed"
    """It was cancelled, and goes on well after its grace."""
    STALE = "stale"
    """Its heartbeats are missing."""
    FORGOTTEN = "forgotten"
    """The work that opened its scope has ended and nobody cancelled the scope."""
    OVERDUE = "overdue"
    """It is many times older than what its scope usually takes, and says nothing of itself."""
    OUTSIDE = "outside"
    """It is a task that no scope knows: a drain does not wait for it."""


ADVICE = {
    Rule.SWALLOWED: "look for `except` around an await that does not raise CancelledError again",
    Rule.STALE: "it hangs, or does not call ebbtide.heartbeat often enough for the heartbeat_s of its scope",
    Rule.FORGOTTEN: "cancel the scope where its owner ends, or open it outside of what ends first",
    Rule.OVERDUE: "give it a time limit; what is meant to last belongs in a scope of its own, or sends heartbeats",
    Rule.OUTSIDE: "start it by Scope.spawn, or take it in by Scope.adopt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From when on something is suspected.

    Attributes:
        least_age_s: Younger work is never overdue, forgotten or outside.
        times_usual: Overdue: so many times as old as the slowest of a hundred.
        enough: Overdue: so many must have finished in the scope before there is a usual.
    """

    least_age_s: float = 60.0
    times_usual: float = 10.0
    enough: int = 20


class Kind(NamedTuple):
    """What is known of a scope at the time of a look.

    Attributes:
        usual_s: How long its work usually takes at most; None: too little has finished.
        heartbeat_s: The interval of heartbeats that its work promised; None: none.
        orphaned: The entry that opened the scope has ended, and nobody else ever asked for the scope.
    """

    usual_s: float | None = None
    heartbeat_s: float | None = None
    orphaned: bool = False


class Sight(NamedTuple):
    """What is known of one entry at the time of a look.

    Attributes:
        kind: Of its scope.
        age_s: Since its start.
        beat_age_s: Since its last heartbeat, its start being the first; None: it sends none.
        cancelled_s: Since it was cancelled, its grace taken off; None: it was not cancelled.
    """

    kind: Kind
    age_s: float
    beat_age_s: float | None = None
    cancelled_s: float | None = None


def usual_s(durations: Collection[float], thresholds: Thresholds) -> float | None:
    """Return how long the slowest of a hundred took; None where too few have finished to tell."""
    if len(durations) < thresholds.enough:
        return None
    return sorted(durations)[ceil(0.99 * len(durations)) - 1]


def judge(sight: Sight, thresholds: Thresholds) -> Rule | None:
    """Say which rule an entry falls under, if any."""
    kind = sight.kind
    if sight.cancelled_s is not None:
        # What was asked to end and cleans up is nothing else meanwhile.
        return Rule.SWALLOWED if sight.cancelled_s > 0 else None
    if missed(kind.heartbeat_s, sight.beat_age_s):
        return Rule.STALE
    if sight.age_s < thresholds.least_age_s:
        return None
    if kind.orphaned:
        return Rule.FORGOTTEN
    if kind.usual_s is not None and sight.beat_age_s is None and sight.age_s > thresholds.times_usual * kind.usual_s:
        return Rule.OVERDUE
    return None
