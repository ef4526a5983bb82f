"""Watches the number of tasks, and says once when its shape changes."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ebbtide.leaks.trend import Trend

logger = logging.getLogger("ebbtide")

KEPT = 60
"""Samples: ten minutes of the patrol's."""
SURE = 9
"""So many samples in a row must say the same before it counts: one at the edge says this and that."""
CALM = 30
"""So many must say that all is normal again. A leak is seen better at some times than at others, and whoever was told
of it shall not be told that it is over until it is."""

ADVICE = {
    "growth": "more is started than ends: look at /debug/tasks for what waits longest",
    "sawtooth": "work piles up and goes at once: look for what is flushed, thrown away or restarted",
    "normal": "back to normal",
}


class TrendWatch:
    """Keep the last counts of one process.

    Args:
        interval_s: Seconds between two samples.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._counts: deque[int] = deque(maxlen=KEPT)
        self._seen = "normal"
        self._times = 0
        self._trend: Trend | None = None

    @property
    def trend(self) -> Trend:
        """What they do."""
        from ebbtide.leaks.trend import Shape, Trend

        return self._trend or Trend(Shape.NORMAL, 0.0)

    def sample(self, count: int) -> None:
        """Take note of a count."""
        from ebbtide.leaks.trend import Shape, Trend, classify

        self._counts.append(count)
        found = classify(tuple(self._counts), self._interval_s)
        self._times = self._times + 1 if found.shape is self._seen else 1
        self._seen = found.shape
        enough = CALM if found.shape is Shape.NORMAL else SURE
        shape = found.shape if self._times >= enough else self.trend.shape
        if shape is not self.trend.shape:
            logger.warning(
                "ebbtide: the number of tasks (%d) went from %s to %s, %+.3g per second: %s",
                count,
                self.trend.shape,
                shape,
                found.growth_per_s,
                ADVICE[shape],
            )
        self._trend = Trend(shape, found.growth_per_s)
