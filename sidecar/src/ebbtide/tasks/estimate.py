"""How long the work in flight may still take, by what its like took before."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ebbtide.tasks.entries import Live
    from ebbtide.tasks.scope import Scope

ENOUGH = 5
"""Fewer finished ones than this are no ground for an estimate."""
LOOKED_AT = 200
"""Entries of one scope that an estimate looks at; of more, an even selection."""


def eta_s(entries: Iterable[Live]) -> float | None:
    """Estimate the seconds until every entry has ended; None where there is too little to go by.

    The estimate of several scopes is that of the slowest.
    """
    now = monotonic()
    ages: defaultdict[Scope, list[float]] = defaultdict(list)
    for entry in entries:
        ages[entry.scope].append(now - entry.started_at)
    longest_s = 0.0
    for scope, these in ages.items():
        left_s = remaining_s(these, sorted(scope.durations.copy()))
        if left_s is None:
            return None
        longest_s = max(longest_s, left_s)
    return longest_s


def remaining_s(ages: Sequence[float], durations: Sequence[float]) -> float | None:
    """Return how long the last of several entries may still take.

    An entry of a certain age is compared with those alone that lasted longer than that. Of n entries the last one is
    wanted, which is about as slow as the slowest of n: hence the n/(n+1) quantile.

    Args:
        ages: Seconds since each entry started.
        durations: Seconds that finished ones took, sorted.

    Returns:
        Seconds; None where too few have finished, or an entry is older than all of them.
    """
    if len(durations) < ENOUGH:
        return None
    quantile = len(ages) / (len(ages) + 1)
    stride = max(1, len(ages) // LOOKED_AT)
    left_s = 0.0
    for age_s in ages[::stride]:
        first = bisect_right(durations, age_s)
        if first == len(durations):
            return None
        at = first + int(quantile * (len(durations) - first))
        left_s = max(left_s, durations[at] - age_s)
    return left_s
