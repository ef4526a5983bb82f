"""What a crash does to others, and when to try again what crashed: rules without a clock; `now` is in seconds."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

POWERS = 64
LARGE = 1e4
"""With it, the power of `POWERS` is still a number."""


class OnCrash(StrEnum):
    """What a crash does to the rest of its scope. What crashes is logged once and counted in either case."""

    ISOLATE = "isolate"
    """Nothing: neighbours go on."""
    PROPAGATE = "propagate"
    """Everything in the scope and inside it is cancelled; then the scope around it does what its own policy says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """How often, and after which pause, something that crashed is started again.

    Attributes:
        limit: Restarts within `within_s` after which the next crash is final; None: never.
        within_s: Seconds.
        first_s: Pause before the first restart.
        factor: How much longer each further pause is, while crashes are within `within_s` of each other.
        most_s: Longest pause.
        spread: Part of the pause that chance adds, so that many processes do not come back at once.

    Raises:
        ValueError: A field is out of its range; the message names it.
    """

    limit: int | None = 5
    within_s: float = 60.0
    first_s: float = 0.5
    factor: float = 2.0
    most_s: float = 30.0
    spread: float = 0.25

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit: must be 0 or more, or None for no limit; not {self.limit!r}")
        for name in ("within_s", "first_s", "most_s", "spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be 0 or more, not {getattr(self, name)!r}")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor: must be 1 or more, not {self.factor!r}")


class Restarts:
    """The restarts of one piece of work.

    Args:
        policy: The rules.
    """

    __slots__ = ("_crashes", "_policy")

    def __init__(self, policy: Restart) -> None:
        self._policy = policy
        # Bounded also without a limit: more than so many do not make the pause any longer.
        self._crashes: deque[float] = deque(maxlen=POWERS if policy.limit is None else policy.limit + 1)

    def crashed(self, now: float, chance: float = 0.0) -> float | None:
        """Take note of a crash.

        Args:
            now: Monotonic seconds.
            chance: Random number from 0 to 1.

        Returns:
            Seconds until the restart; None: it was the last one.
        """
        policy = self._policy
        while self._crashes and now - self._crashes[0] > policy.within_s:
            self._crashes.popleft()
        if policy.limit is not None and len(self._crashes) >= policy.limit:
            return None
        power = min(len(self._crashes), POWERS)
        self._crashes.append(now)
        pause_s = min(policy.most_s, policy.first_s * min(policy.factor, LARGE) ** power)
        return pause_s * (1 + policy.spread * chance)
