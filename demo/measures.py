"""The figures that need a rule of their own: percentiles, signal latency, work interrupted for nothing.

Pure: no clock, no I/O. Times are Unix seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from .history import Removal

SAME_MOMENT_S = 1.0
"""Pods that are taken within this time of the first of them were chosen together."""
CLOCK_TOLERANCE_S = 0.05
"""A pod may be told this much before the time on its order: two processes read the clock."""


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` of the values do not exceed; None without values.

    Raises:
        ValueError: `percent` is not above 0 and up to 100.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent: must be above 0 and up to 100, not {percent!r}")
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None


def signal_latencies(decided: Mapping[str, Sequence[float]], told: Mapping[str, Sequence[float]]) -> list[float]:
    """Return how long each decision took to reach its pod, in seconds.

    Args:
        decided: Times, by pod, at which it was decided that it goes.
        told: Times, by pod, at which it learned so; each answers the last decision before it.
    """
    latencies = []
    for pod, decisions in decided.items():
        for decision, following in pairwise([*sorted(decisions), math.inf]):
            answers = [at for at in told.get(pod, ()) if decision - CLOCK_TOLERANCE_S <= at < following]
            if answers:
                latencies.append(max(0.0, min(answers) - decision))
    return latencies


def interrupted_for_nothing(
    removals: Sequence[Removal],
    standing: Callable[[float], Iterable[str]],
    loads: Callable[[float], Mapping[str, int]],
    surplus: int,
) -> int:
    """Count the orders in flight on pods that were taken, beyond the fewest that had to be.

    Pods that were taken together are judged together: of those standing at that moment, the idlest would have been the
    right ones, as long as there was surplus; a pod that was taken beyond the surplus could have stayed, and all of its
    orders count.

    Args:
        removals: Pods of the template that stays, in the order in which they were taken.
        standing: Returns the pods of that template at a moment; those that were taken before it are left out here.
        loads: Returns the orders in flight by pod at a moment.
        surplus: How many pods of that template had to go.
    """
    total = 0
    rest = list(removals)
    taken: set[str] = set()
    while rest:
        moment = rest[0].taken_at
        together = [item.pod for item in rest if item.taken_at - moment <= SAME_MOMENT_S]
        rest = rest[len(together) :]
        load = loads(moment)
        needed = min(surplus, len(together))
        surplus -= needed
        candidates = (set(standing(moment)) - taken) | set(together)
        taken.update(together)
        fewest = sum(sorted(load.get(pod, 0) for pod in candidates)[:needed])
        total += sum(load.get(pod, 0) for pod in together) - fewest
    return total
