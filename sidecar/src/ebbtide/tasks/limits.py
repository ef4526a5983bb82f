"""How much may start: rules without a clock. `now` is monotonic seconds, and nothing here waits or does I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Self, TypeVar

Number = TypeVar("Number", int, float)

MAX_TASKS = 1000
TASKS_PER_S = 200.0
BURST = 1000
"""A process that starts, or fans one request out, may fill `MAX_TASKS` at once; only going on like that is slowed."""
BREAKER_TIMEOUTS = 5
BREAKER_PAUSE_S = 10.0
ADMISSION_WAIT_S = 1.0

ROUNDING_S = 1e-6
"""Sums of many intervals come out a little beside the product."""


class Admission(StrEnum):
    """What happens to a task for which there is no room."""

    REFUSE = "refuse"
    """`Refused`, at once."""
    WAIT = "wait"
    """`Scope.submit` waits for room, up to a time; `Scope.spawn`, which cannot wait, refuses."""
    SHED = "shed"
    """The oldest task of the same scope is cancelled for it; where only time helps, it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a scope, with everything inside it, may start. None: no limit of its own, and its parents' hold.

    Attributes:
        max_tasks: Tasks and threads at the same time, 1 or more.
        rate_per_s: New ones per second, above 0.
        burst: New ones at once after a quiet time, 1 or more; None: a second's worth.
        breaker_timeouts: Time-outs in a row after which nothing is started for a while, 1 or more.
        breaker_pause_s: Seconds until one task is let through to see whether things are better.
        admission: What happens where there is no room.
        wait_s: Seconds that `Scope.submit` waits for room with `Admission.WAIT`.

    Raises:
        ValueError: A field is out of its range; the message names it.
    """

    max_tasks: int | None = None
    rate_per_s: float | None = None
    burst: int | None = None
    breaker_timeouts: int | None = None
    breaker_pause_s: float | None = None
    admission: Admission | None = None
    wait_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_tasks", "burst", "breaker_timeouts"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}: must be a whole number, 1 or more, or None for no limit; not {value!r}")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < math.inf:
            raise ValueError(f"rate_per_s: must be above 0, or None for no limit; not {self.rate_per_s!r}")
        for name in ("breaker_pause_s", "wait_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: must be seconds, 0 or more; not {value!r}")
        if self.burst is not None and self.rate_per_s is None:
            raise ValueError("burst: means nothing without rate_per_s")
        if self.admission is not None:
            Admission(self.admission)

    @classmethod
    def defaults(cls) -> Self:
        """Return what holds for a process that says nothing."""
        return cls(
            max_tasks=MAX_TASKS,
            rate_per_s=TASKS_PER_S,
            burst=BURST,
            breaker_timeouts=BREAKER_TIMEOUTS,
            breaker_pause_s=BREAKER_PAUSE_S,
            admission=Admission.REFUSE,
            wait_s=ADMISSION_WAIT_S,
        )

    def inside(self, parent: Limits) -> Limits:
        """Return what holds in a scope with these limits inside a parent: of each pair the tighter.

        How to admit, and how long a breaker pauses, is no matter of more or less: there the inner one's word counts.
        """
        slower = self if _less(self.rate_per_s, parent.rate_per_s) else parent
        return Limits(
            max_tasks=tighter(self.max_tasks, parent.max_tasks),
            rate_per_s=slower.rate_per_s,
            burst=slower.burst,
            breaker_timeouts=tighter(self.breaker_timeouts, parent.breaker_timeouts),
            breaker_pause_s=parent.breaker_pause_s if self.breaker_pause_s is None else self.breaker_pause_s,
            admission=parent.admission if self.admission is None else self.admission,
            wait_s=parent.wait_s if self.wait_s is None else self.wait_s,
        )

    def changed(self, texts: Mapping[str, str]) -> Limits:
        """Return the limits with fields replaced by what people wrote; `none` stands for no limit.

        Raises:
            ValueError: There is no such field, or its value is out of range; the message names it.
        """
        values: dict[str, int | float | Admission | None] = {}
        for name, text in texts.items():
            if name not in _READERS:
                raise ValueError(f"{name}: no such limit; there are {', '.join(_READERS)}")
            try:
                values[name] = None if text == "none" else _READERS[name](text)
            except ValueError:
                raise ValueError(f"{name}: cannot be {text!r}") from None
        return replace(self, **values)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, int | float | str | None]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


_READERS: Mapping[str, Callable[[str], int | float | Admission]] = {
    "max_tasks": int,
    "rate_per_s": float,
    "burst": int,
    "breaker_timeouts": int,
    "breaker_pause_s": float,
    "admission": Admission,
    "wait_s": float,
}


class TokenBucket:
    """So many per second over the long run, and so many at once after a quiet time.

    Kept as the time at which the bucket is full again (the generic cell rate algorithm, ITU-T I.371): one number, and
    nothing to refill.

    Args:
        rate_per_s: Tokens per second; infinite: there are always some.
        burst: Tokens that a full bucket holds.

    Attributes:
        full_at: When it is full, monotonic seconds.
        interval_s: From one token to the next.
        slack_s: How far off `full_at` may be while there still is a token.
    """

    __slots__ = ("burst", "full_at", "interval_s", "rate_per_s", "slack_s")

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self.full_at = -math.inf
        self._set(rate_per_s, burst)

    def change(self, rate_per_s: float, burst: int, now: float) -> None:
        """Go on with another rate; tokens that were taken stay taken, as far as the new burst goes."""
        taken = max(0.0, self.full_at - now) / self.interval_s if self.interval_s else 0.0
        self._set(rate_per_s, burst)
        self.full_at = now + min(round(taken, 6), burst) * self.interval_s

    def _set(self, rate_per_s: float, burst: int) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.interval_s = 1 / rate_per_s
        self.slack_s = (burst - 1) * self.interval_s + ROUNDING_S

    def take(self, now: float) -> bool:
        """Take a token; False where there is none."""
        full_at = self.full_at
        if full_at < now:
            full_at = now
        elif full_at - now > self.slack_s:
            return False
        self.full_at = full_at + self.interval_s
        return True

    def reserve(self, now: float) -> float:
        """Take a token in any case; return the seconds until it is there."""
        self.full_at = max(self.full_at, now) + self.interval_s
        return max(0.0, self.full_at - self.interval_s - self.slack_s - now)

    def give_back(self) -> None:
        """Put the last token back: its owner was turned away elsewhere."""
        self.full_at -= self.interval_s

    def wait_s(self, now: float) -> float:
        """Return the seconds until there is a token; 0 where there is one."""
        return max(0.0, self.full_at - self.slack_s - now)


class Breaker:
    """Stop creation after so many time-outs in a row; after a pause let one through, and go by how that one ends.

    An end without a time-out ends the row, whatever else it was. A cancelled task proves nothing: it neither ends the
    row nor, where it was the one let through, decides.

    Args:
        timeouts: Length of the row; None: never stops.
        pause_s: Seconds.
    """

    __slots__ = ("_probe", "opened_at", "pause_s", "row", "timeouts", "trips")

    def __init__(self, timeouts: int | None, pause_s: float) -> None:
        self.timeouts = timeouts
        self.pause_s = pause_s
        self.row = 0
        """Time-outs since the last end without one."""
        self.opened_at: float | None = None
        """When it stopped creation; None: it does not."""
        self.trips = 0
        """How often it did."""
        self._probe: int | None = None

    def change(self, timeouts: int | None, pause_s: float) -> None:
        """Go on with other numbers; without a limit it does not stop anything any more."""
        self.timeouts = timeouts
        self.pause_s = pause_s
        if timeouts is None:
            self._close()

    def state(self, now: float) -> str:
        """Return `closed`, `open` or `half-open`."""
        if self.opened_at is None:
            return "closed"
        return "half-open" if now >= self.opened_at + self.pause_s else "open"

    def admits(self, now: float) -> bool:
        """Say whether a task may start now."""
        return self.opened_at is None or (self._probe is None and now >= self.opened_at + self.pause_s)

    def admitted(self, number: int) -> None:
        """Take note of a task that starts: of a half-open breaker it is the one let through."""
        if self.opened_at is not None:
            self._probe = number

    def wait_s(self, now: float) -> float:
        """Return the seconds after which another try may be worth while."""
        if self.opened_at is None:
            return 0.0
        # Past the pause somebody is being tried: its end is not known, the pause is a fair guess.
        left_s = self.opened_at + self.pause_s - now
        return left_s if left_s > 0 else self.pause_s

    def timed_out(self, number: int, now: float) -> bool:
        """Count a time-out; True where it stopped creation."""
        if self.timeouts is None:
            return False
        if self.opened_at is None:
            self.row += 1
            if self.row < self.timeouts:
                return False
        elif number != self._probe:
            return False  # it started before the pause, and says nothing new
        self.opened_at = now
        self._probe = None
        self.trips += 1
        return True

    def ended(self, number: int) -> None:
        """Count an end without a time-out."""
        if self.opened_at is None:
            self.row = 0
        elif number == self._probe:
            self._close()

    def dropped(self, number: int) -> None:
        """Count an end that proves nothing."""
        if number == self._probe:
            self._probe = None

    def _close(self) -> None:
        self.row = 0
        self.opened_at = None
        self._probe = None


def _less(one: float | None, other: float | None) -> bool:
    return one is not None and (other is None or one < other)


def tighter(one: Number | None, other: Number | None) -> Number | None:
    """Return the smaller of two limits; None: no limit."""
    return one if _less(one, other) else other
