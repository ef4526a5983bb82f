"""The table that the demo ends with, as plain text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from .results import Row

NOTHING = "-"
"""Stands where there is nothing to measure."""


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _latency(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return NOTHING
    return f"{low:.2f} / {high:.2f}"


def _writes(row: Row) -> str:
    if row.writes_per_pod is None or row.own_writes_per_pod is None:
        return NOTHING
    return f"{row.writes_per_pod:.1f} ({row.own_writes_per_pod:.1f})"


COLUMNS: tuple[tuple[tuple[str, str], Callable[[Row], str]], ...] = (
    (("", "Deployment"), lambda row: row.deployment),
    (("orders", "sent"), lambda row: str(row.sent)),
    (("", "finished"), lambda row: str(row.finished)),
    (("", "lost"), lambda row: str(row.lost)),
    (("dupli-", "cated"), lambda row: str(row.duplicated)),
    (("interrupted", "for nothing"), lambda row: str(row.interrupted_for_nothing)),
    (("really", "over (s)"), lambda row: _seconds(row.over_s)),
    (("status says", "over (s)"), lambda row: _seconds(row.status_s)),
    (("peak", "pods"), lambda row: str(row.peak_pods)),
    (("least", "serving"), lambda row: str(row.least_serving)),
    (("signal (s)", "p50 / p99"), lambda row: _latency(row.signal_p50_s, row.signal_p99_s)),
    (("release (s)", "p50 / p99"), lambda row: _latency(row.release_p50_s, row.release_p99_s)),
    (("API writes per", "pod (Ebbtide's)"), _writes),
)


def render(rows: Sequence[Row]) -> str:
    """Lay rows out by scene; columns are as wide as their widest cell, figures to the right.

    Orders that belong to no column (turned away for good, or undecided) are listed under the table: every order that
    was sent is somewhere. So are pods that had to go before they had started, which no latency is of.
    """
    cells = [[value(row) for _, value in COLUMNS] for row in rows]
    widths = [
        max(len(text) for text in (*heading, *(line[index] for line in cells)))
        for index, (heading, _) in enumerate(COLUMNS)
    ]
    lines = [_line([heading[level] for heading, _ in COLUMNS], widths) for level in (0, 1)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    for scene, group in groupby(zip(rows, cells, strict=True), key=lambda pair: pair[0].scene):
        lines += [rule, scene]
        lines += [_line(line, widths) for _, line in group]
    lines.append(rule)
    for row in rows:
        if row.turned_away or row.open:
            lines.append(
                f"{row.scene}, {row.deployment}: {row.turned_away} orders turned away for good, {row.open} undecided"
            )
    for row in rows:
        if row.starting and row.signals:
            longest_s = row.starting_signal_s
            knew = (
                "none of them ran to know it" if longest_s is None else f"the last to know did after {longest_s:.1f} s"
            )
            lines.append(f"{row.scene}, {row.deployment}: {row.starting} pods had to go while they started; {knew}")
    return "\n".join(lines)


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        text.ljust(width) if index == 0 else text.rjust(width)
        for index, (text, width) in enumerate(zip(texts, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()
