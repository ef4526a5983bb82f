"""What the number of tasks does over time: a pure rule over samples taken at even intervals.

Three shapes: *normal*; *growth*, where what ends is always less than what starts (a leak); *sawtooth*, where it piles
up and goes at once, again and again (churn: a queue that is flushed, a pool that is thrown away, restarts).

Growth is looked for in the lower envelope, the least of each of a few stretches: load comes and goes above it, and what
leaks stays below. The thresholds were chosen on generated series by tests/bench/trend_quality.py, which prints how
often they are right on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, pairwise
from statistics import mean, median

STRETCHES = 8
LEAST_SAMPLES = 40
"""Fewer say nothing: five for each stretch."""


class Shape(StrEnum):
    """What a series looks like."""

    NORMAL = "normal"
    GROWTH = "growth"
    SAWTOOTH = "sawtooth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From when on a shape is no chance.

    Noise is what the series itself shows of it, and at most the square root of the level, which is that of arrivals
    independent of each other: what has leaked already raises the level, and makes no noise.

    Attributes:
        order: Growth: how consistently the lower envelope rises, from -1 to 1 (Kendall's tau).
        rise: Growth: by how many times the noise it rises.
        lasting: Growth: the rise of the second half as a part of the first half's; less is a start that settles.
        leap: Growth: what one stretch may add, as a part of the whole rise; more is a step to another load.
        drop: Sawtooth: how much of what piled up goes at once.
        teeth: Sawtooth: drops at least.
        height: Sawtooth: range, in times the noise between neighbours.
    """

    order: float = 0.4
    rise: float = 3.0
    lasting: float = 0.2
    leap: float = 0.6
    drop: float = 0.8
    teeth: int = 2
    height: float = 6.0


@dataclass(frozen=True, slots=True)
class Trend:
    """What a series does.

    Attributes:
        shape: See `Shape`.
        growth_per_s: Tasks per second by which the lower envelope rises; may be negative.
    """

    shape: Shape
    growth_per_s: float


def classify(counts: Sequence[float], interval_s: float, thresholds: Thresholds | None = None) -> Trend:
    """Say what a series of counts does.

    Args:
        counts: The oldest first, at even intervals; fewer than 40 are normal.
        interval_s: Seconds between two of them.
        thresholds: None: those that were chosen from data.
    """
    if len(counts) < LEAST_SAMPLES:
        return Trend(Shape.NORMAL, 0.0)
    limits = thresholds or Thresholds()
    envelope = _envelope(counts)
    slope = median((after - before) / steps for steps, before, after in _pairs(envelope))
    growth_per_s = slope / (len(counts) / len(envelope) * interval_s)
    if _is_sawtooth(counts, limits):
        return Trend(Shape.SAWTOOTH, growth_per_s)
    if _is_growth(counts, envelope, slope, limits):
        return Trend(Shape.GROWTH, growth_per_s)
    return Trend(Shape.NORMAL, growth_per_s)


def _is_growth(counts: Sequence[float], envelope: Sequence[float], slope: float, limits: Thresholds) -> bool:
    order = mean((after > before) - (after < before) for _, before, after in _pairs(envelope))
    if order < limits.order:
        return False
    rise_each = slope * len(envelope) / len(counts)
    noise = _noise(counts, [count - rise_each * at for at, count in enumerate(counts)])
    middle = len(envelope) // 2
    first, second = envelope[middle - 1] - envelope[0], envelope[-1] - envelope[middle]
    leap = max(after - before for before, after in pairwise(envelope))
    return (
        slope * (len(envelope) - 1) >= limits.rise * noise
        and second >= limits.lasting * max(first, 0.0)
        and leap <= limits.leap * (envelope[-1] - envelope[0])
    )


def _is_sawtooth(counts: Sequence[float], limits: Thresholds) -> bool:
    ranked = sorted(counts)
    floor = ranked[int(0.05 * (len(ranked) - 1))]
    height = ranked[int(0.95 * (len(ranked) - 1))] - floor
    # The difference of two values is noisier than each.
    noise = _noise(counts, [(after - before) / math.sqrt(2) for before, after in pairwise(counts)])
    if height < limits.height * noise:
        return False
    drops = sum(_falls(before - floor, after - floor, height, limits.drop) for before, after in pairwise(counts))
    jumps = sum(_falls(after - floor, before - floor, height, limits.drop) for before, after in pairwise(counts))
    # A burst goes up as fast as it goes down.
    return drops >= limits.teeth and jumps * 2 < drops


def _noise(counts: Sequence[float], rest: Sequence[float]) -> float:
    """Return how far apart values are by chance; `rest`: the counts without what is no chance."""
    middle = median(rest)
    # The factor makes a standard deviation of it; a few large leaps do not count.
    seen = 1.4826 * median(abs(value - middle) for value in rest)
    return max(1.0, min(seen, math.sqrt(max(1.0, median(counts)))))


def _pairs(envelope: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Yield each two values, the earlier one first, with the steps between them."""
    for (at, before), (later, after) in combinations(enumerate(envelope), 2):
        yield later - at, before, after


def _falls(before: float, after: float, height: float, part: float) -> bool:
    """Say whether so large a part of a pile goes at once; piles of less than a third of the height do not count."""
    return before >= height / 3 and before - after >= part * before


def _envelope(counts: Sequence[float]) -> list[float]:
    bounds = [round(part * len(counts) / STRETCHES) for part in range(STRETCHES + 1)]
    return [min(counts[start:end]) for start, end in pairwise(bounds)]
