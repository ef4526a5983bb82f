"""How often the trend of the task count is told right: `python tests/bench/trend_quality.py [--fit]`, seconds.

Series of 60 counts, from queues that are simulated and shapes that are drawn, with noise. `--fit` looks for thresholds
on one half of the seeds; what is printed is measured on the other half.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator

from ebbtide.leaks.trend import Shape, Thresholds, classify

SAMPLES = 60
PER_KIND = 150

Series = list[float]


def noisy(rng: random.Random, levels: Iterator[float] | list[float]) -> Series:
    return [max(0.0, round(rng.gauss(level, math.sqrt(max(level, 1.0))))) for level in levels]


def level_of(rng: random.Random) -> float:
    return math.exp(rng.uniform(math.log(3), math.log(2000)))


def flat(rng: random.Random) -> Series:
    level = level_of(rng)
    return noisy(rng, [level] * SAMPLES)


def idle(rng: random.Random) -> Series:
    return [float(rng.random() < 0.1) for _ in range(SAMPLES)]


def waves(rng: random.Random) -> Series:
    level, period, part = level_of(rng), rng.uniform(6, 30), rng.uniform(0.2, 0.9)
    phase = rng.uniform(0, math.tau)
    return noisy(rng, [level * (1 + part * math.sin(phase + math.tau * at / period)) for at in range(SAMPLES)])


def bursts(rng: random.Random) -> Series:
    level = level_of(rng)
    return noisy(rng, [level * (rng.uniform(2, 10) if rng.random() < 0.1 else 1) for _ in range(SAMPLES)])


def step(rng: random.Random) -> Series:
    level, at = level_of(rng), rng.randrange(5, SAMPLES - 5)
    factor = rng.choice([0.3, 0.5, 2, 4])
    return noisy(rng, [level * (factor if now >= at else 1) for now in range(SAMPLES)])


def start(rng: random.Random) -> Series:
    level, pace = level_of(rng), rng.uniform(3, 10)
    return noisy(rng, [level * (1 - math.exp(-at / pace)) for at in range(SAMPLES)])


def queueing(rng: random.Random) -> Series:
    """A queue with correlated load: arrivals of a rate that wanders about its mean."""
    rate, share, count = rng.uniform(2, 100), rng.uniform(0.05, 0.5), 0.0
    mean, series = rate, []
    for _ in range(SAMPLES + 60):
        rate += 0.2 * (mean - rate) + rng.gauss(0, 0.1 * mean)
        count = max(0.0, count * (1 - share) + rng.gauss(max(rate, 0.0), math.sqrt(max(rate, 1.0))))
        series.append(round(count))
    return [float(value) for value in series[60:]]


def leak(rng: random.Random, base: Callable[[random.Random], Series]) -> Series:
    under = base(rng)
    height = rng.uniform(6, 40) * math.sqrt(max(1.0, sum(under) / len(under)))
    return [round(value + height * at / SAMPLES + rng.gauss(0, 1)) for at, value in enumerate(under)]


def leak_under_way(rng: random.Random, base: Callable[[random.Random], Series]) -> Series:
    """A leak that began long ago: the level is mostly what has leaked, which makes no noise."""
    under = leak(rng, base)
    leaked = rng.uniform(0.5, 4) * (max(under) - min(under))
    return [value + leaked for value in under]


def teeth(rng: random.Random) -> Series:
    low, period, phase = level_of(rng), rng.uniform(4, 15), rng.uniform(0, 1)
    height = rng.uniform(10, 60) * math.sqrt(low)
    levels, at = [], phase
    for _ in range(SAMPLES):
        at += rng.uniform(0.7, 1.3) / period
        levels.append(low + height * (at % 1))
    return noisy(rng, levels)


def small_flushes(rng: random.Random) -> Series:
    """A few dozen that are thrown away at even intervals, above those that are at work."""
    period, pile, working = rng.randrange(5, 16), rng.uniform(10, 40), rng.uniform(2, 12)
    levels = [working + pile * (at % period) / period for at in range(SAMPLES)]
    return noisy(rng, levels)


def flushes(rng: random.Random) -> Series:
    """A pile that is thrown away at random times, not always all of it."""
    rate, count, series = rng.uniform(5, 50), 0.0, []
    often, rest = rng.uniform(0.08, 0.2), rng.uniform(0, 0.2)
    for _ in range(SAMPLES):
        count = count * rest if rng.random() < often else count + rng.gauss(rate, math.sqrt(rate))
        series.append(max(0.0, round(count)))
    return series


KINDS: dict[str, tuple[Shape, Callable[[random.Random], Series]]] = {
    "flat": (Shape.NORMAL, flat),
    "idle": (Shape.NORMAL, idle),
    "waves": (Shape.NORMAL, waves),
    "bursts": (Shape.NORMAL, bursts),
    "step": (Shape.NORMAL, step),
    "start": (Shape.NORMAL, start),
    "queueing": (Shape.NORMAL, queueing),
    "leak": (Shape.GROWTH, lambda rng: leak(rng, flat)),
    "leak under waves": (Shape.GROWTH, lambda rng: leak(rng, waves)),
    "leak under bursts": (Shape.GROWTH, lambda rng: leak(rng, bursts)),
    "leak under queueing": (Shape.GROWTH, lambda rng: leak(rng, queueing)),
    "leak under way": (Shape.GROWTH, lambda rng: leak_under_way(rng, queueing)),
    "teeth": (Shape.SAWTOOTH, teeth),
    "flushes": (Shape.SAWTOOTH, flushes),
    "small flushes": (Shape.SAWTOOTH, small_flushes),
}


def generate(seed: int, per_kind: int = PER_KIND) -> list[tuple[str, Shape, Series]]:
    rng = random.Random(seed)
    return [(name, shape, make(rng)) for name, (shape, make) in KINDS.items() for _ in range(per_kind)]


def scores(data: list[tuple[str, Shape, Series]], thresholds: Thresholds) -> dict[Shape, tuple[float, float]]:
    """Return precision and recall of each shape."""
    table = Counter((shape, classify(series, 10.0, thresholds).shape) for _, shape, series in data)
    found = {}
    for shape in Shape:
        right = table[shape, shape]
        said = sum(count for (_, answer), count in table.items() if answer is shape)
        were = sum(count for (truth, _), count in table.items() if truth is shape)
        found[shape] = (right / said if said else 1.0, right / were if were else 1.0)
    return found


def fit(data: list[tuple[str, Shape, Series]]) -> Thresholds:
    """Return the thresholds with the best sum of F scores; a false alarm counts like a leak that is missed."""
    grid = itertools.product(
        (0.4, 0.5, 0.6, 0.7), (3.0, 4.0), (0.2, 0.3), (0.4, 0.5, 0.6), (0.5, 0.6, 0.7, 0.8), (2, 3), (5.0, 6.0, 8.0)
    )
    names = ("order", "rise", "lasting", "leap", "drop", "teeth", "height")
    choices = [Thresholds(**dict(zip(names, values, strict=True))) for values in grid]  # type: ignore[arg-type]

    def quality(choice: Thresholds) -> float:
        return sum(2 * p * r / (p + r) if p + r else 0.0 for p, r in scores(data, choice).values())

    return max(choices, key=quality)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="look for thresholds first")
    thresholds = fit(generate(1, 40)) if parser.parse_args().fit else Thresholds()
    sys.stdout.write(f"{thresholds}\n")
    data = generate(2)
    for shape, (precision, recall) in scores(data, thresholds).items():
        sys.stdout.write(f"{shape:<9} precision {precision:.3f}  recall {recall:.3f}\n")
    for name, (shape, _) in KINDS.items():
        mine = [classify(series, 10.0, thresholds).shape for kind, _, series in data if kind == name]
        others = {str(answer): count for answer, count in Counter(mine).items() if answer is not shape}
        sys.stdout.write(f"  {name:<20} {mine.count(shape) / len(mine):6.1%}  {others or ''}\n")


if __name__ == "__main__":
    main()
