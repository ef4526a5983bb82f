"""Figures of the benchmarks as data: what was measured, and what it shall be."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside its goal.

    Attributes:
        goal: Its id, for example `G1`.
        what: What was measured, and how.
        measured: In `unit`.
        unit: For people: `x bare`, `ns`, `B`.
        target: In `unit`.
        at_most: Whether the target is an upper bound; False: a lower one.
    """

    goal: str
    what: str
    measured: float
    unit: str
    target: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.measured <= self.target if self.at_most else self.measured >= self.target


def show(figures: Iterable[Figure], out: TextIO | None = None) -> None:
    """Write an aligned table; None: to standard output."""
    rows = [
        (
            figure.goal,
            figure.what,
            f"{figure.measured:.4g} {figure.unit}",
            f"{'<=' if figure.at_most else '>='} {figure.target:g}",
            "met" if figure.met else "MISSED",
        )
        for figure in figures
    ]
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        (out or sys.stdout).write(line.rstrip() + "\n")
