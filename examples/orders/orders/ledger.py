"""The ledger: every order of every run, and every mark of every pod, in memory.

It lives in the process of the load generator, so that what the client saw and what the pod did stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from .accounts import Execution, Fate, OrderRecord, fate
from .marks import Mark, MarkKind


class DuplicateRunError(ValueError):
    """A run of this name exists already."""


@dataclass(slots=True)
class Run:
    """The orders of one run of the load generator. Times are Unix seconds."""

    name: str
    started_at: float
    stopped_at: float | None = None
    """When the last order was sent; None while it goes on."""
    orders: dict[str, OrderRecord] = field(default_factory=dict)


class Ledger:
    """Keep runs and marks.

    Args:
        clock: Returns Unix time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._runs: dict[str, Run] = {}
        self._orders: dict[str, OrderRecord] = {}
        self._pod_marks: list[Mark] = []
        self.stray_marks = 0
        """Marks about orders that no run knows: pods that outlived a restart of this process."""

    def open_run(self, name: str) -> Run:
        """Begin a run.

        Raises:
            DuplicateRunError: There is one of this name.
        """
        if name in self._runs:
            raise DuplicateRunError(f"name: there is a run {name!r} already")
        run = self._runs[name] = Run(name, self._clock())
        return run

    def run(self, name: str) -> Run | None:
        return self._runs.get(name)

    def enter(self, run: Run, order: OrderRecord) -> None:
        """Write down an order before its client sends it: pods mark only orders that are known."""
        run.orders[order.id] = self._orders[order.id] = order

    def mark(self, mark: Mark) -> None:
        """Take a mark from a pod; a mark that is delivered twice changes nothing."""
        if not mark.order:
            if mark not in self._pod_marks:
                self._pod_marks.append(mark)
            return
        order = self._orders.get(mark.order)
        if order is None:
            self.stray_marks += 1
            return
        execution = order.executions.setdefault(mark.execution, Execution(mark.pod, mark.at))
        if mark.kind is MarkKind.COMPLETED and execution.completed_at is None:
            execution.completed_at = mark.at

    def summary(self, run: Run) -> dict[str, Any]:
        """Count the orders of a run by Deployment and fate."""
        now = self._clock()
        deployments: dict[str, dict[str, int]] = {}
        for order in run.orders.values():
            counts = deployments.setdefault(
                order.deployment, dict.fromkeys(("sent", "in_flight", "refusals", *Fate), 0)
            )
            counts["sent"] += 1
            counts["refusals"] += order.refusals
            counts["in_flight"] += order.settled_at is None
            counts[fate(order, now)] += 1
        return {
            "name": run.name,
            "now": now,
            "started_at": run.started_at,
            "stopped_at": run.stopped_at,
            "stray_marks": self.stray_marks,
            "deployments": deployments,
        }

    def dump(self, run: Run) -> dict[str, Any]:
        """Return the whole run as JSON, and what pods said about themselves since it began."""
        return {
            **self.summary(run),
            "orders": [order.to_json() for order in run.orders.values()],
            "pod_marks": [asdict(mark) for mark in self._pod_marks if mark.at >= run.started_at],
        }
