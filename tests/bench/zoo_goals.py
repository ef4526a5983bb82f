"""What a smaller zoo says of goals G16 and G17: `python -m tests.bench.zoo_goals`, 40 s; `make zoo` runs 1,000."""

from __future__ import annotations

import os

from tests.bench.figures import Figure, show
from tests.bench.zoo import many

RUNS = 200


def figures() -> list[Figure]:
    """Return what was measured for G16 and G17."""
    runs = int(os.environ.get("EBBTIDE_ZOO_RUNS", RUNS))
    outcomes = many(runs, os.cpu_count() or 1)
    in_time = sum(each.in_time for each in outcomes)
    lost = sum(abs(each.admitted - each.accounted) for each in outcomes)
    late_ms = max(1000 * (each.took_s - each.budget_s - each.lag_s) for each in outcomes)
    admitted = sum(each.admitted for each in outcomes)
    drains = f"drains among bad citizens within their budget, of {runs:,} (the latest {late_ms:.0f} ms past it)"
    units = f"work neither finished, given back nor reported, of {admitted:,} units in them"
    return [
        Figure("G16", drains, in_time, "drains", runs, at_most=False),
        Figure("G17", units, lost, "units", 0),
    ]


if __name__ == "__main__":
    show(figures())
