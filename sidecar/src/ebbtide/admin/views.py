"""What the process says of itself: to the operator, to people, and to Prometheus. Reads only, from any thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ebbtide.lifecycle.drainreport import DrainReport
from ebbtide.lifecycle.hooks import Hooks
from ebbtide.lifecycle.machine import Machine
from ebbtide.tasks.estimate import eta_s
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.states import view
from ebbtide.vocabulary import PodState

if TYPE_CHECKING:
    from ebbtide.admin.exposition import Numbers
    from ebbtide.leaks.trend import Trend
    from ebbtide.protocol import Report


class Views:
    """Look at one process.

    Args:
        registry: Its work.
        machine: Returns its state.
        hooks: Whose last runs are shown.
        trend: Returns what the number of tasks does.
        leaks: Returns how many are suspected to be leaks, by rule.
        drain_report: Returns the report of the last drain, finished or not.
    """

    def __init__(
        self,
        registry: Registry,
        machine: Callable[[], Machine],
        hooks: Sequence[Hooks],
        trend: Callable[[], Trend],
        leaks: Callable[[], Mapping[str, int]],
        drain_report: Callable[[], DrainReport | None],
    ) -> None:
        self._registry = registry
        self._machine = machine
        self._hooks = hooks
        self._trend = trend
        self._drain_report = drain_report
        self._leaks = leaks
        self.boot_id = os.urandom(16).hex()

    def report(self, sequence: int, phase_revision: int) -> Report:
        """Return what the operator is told."""
        from ebbtide.protocol import Report

        machine = self._machine()
        drain = self._drain_report() if machine.state in {PodState.DRAINED, PodState.EXITING} else None
        return Report(
            state=machine.state,
            sequence=sequence,
            boot_id=self.boot_id,
            generation=machine.generation,
            active=len(self._registry),
            oldest_age_s=round(self._registry.oldest_age_s(), 3),
            eta_s=self._eta_s(),
            tally=self._registry.tally,
            forced=machine.forced,
            phase_revision=phase_revision,
            drain=None if drain is None else drain.digest(),
        )

    def drain(self) -> Mapping[str, Any]:
        """Return the drain as JSON: state, reason, tasks, times."""
        machine, now = self._machine(), time.monotonic()
        started = machine.drain_started_at
        return {
            "state": machine.state.value,
            "reason": str(machine.reason) if machine.reason else None,
            "active": len(self._registry),
            "oldest_age_s": round(self._registry.oldest_age_s(), 3),
            "eta_s": self._eta_s(),
            "draining_for_s": None if started is None else round(now - started, 3),
            "deadline_in_s": None if started is None else round(machine.deadline_at - now, 3),
            "forced": machine.forced,
            "tally": self._registry.tally,
            "late_arrivals": self._registry.late_arrivals,
            "hooks": [asdict(record) for hooks in self._hooks for record in hooks.records],
        }

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """Return every unit of work in flight, in the order of admission."""
        return [
            {
                "id": entry.number,
                "name": entry.name,
                "kind": entry.kind,
                "scope": entry.scope,
                "age_s": round(entry.age_s, 3),
                "state": entry.state,
                "heartbeat_age_s": None if entry.heartbeat_age_s is None else round(entry.heartbeat_age_s, 3),
                "meta": entry.meta,
            }
            for entry in view(self._registry)
        ]

    def dump(self, query: Mapping[str, str]) -> str:
        """Return what is in flight, grouped by where it waits; some hundred milliseconds for a hundred thousand.

        Raises:
            ValueError: A parameter cannot be used; the message names it.
        """
        from ebbtide.admin.dump import Question, dump, render

        return render(dump(self._registry, Question.of(query)))

    def limits(self) -> Sequence[Mapping[str, Any]]:
        """Return the limits of the process and of every scope, the process first."""
        return [gate.view() for gate in self._registry.gate.every()]

    def change_limits(self, scope: str, texts: Mapping[str, str]) -> Mapping[str, Any]:
        """Change the limits of a scope, or with an empty name of the process; return what holds now.

        Raises:
            ValueError: There is no such scope, or a value cannot be used.
        """
        for gate in self._registry.gate.every():
            if gate.name == scope:
                gate.change(gate.own_limits.changed(texts))
                return gate.view()
        raise ValueError(f"scope: there is no {scope!r} in this process")

    def numbers(self, store_connected: bool | None) -> Numbers:
        """Return what the metrics are made of; `store_connected` is None where there is no store."""
        from ebbtide.admin.exposition import Numbers

        machine = self._machine()
        started = machine.drain_started_at
        return Numbers(
            state=machine.state,
            active=len(self._registry),
            oldest_age_s=self._registry.oldest_age_s(),
            tally=self._registry.tally,
            drain_age_s=None if started is None else time.monotonic() - started,
            late_arrivals=self._registry.late_arrivals,
            store_connected=store_connected,
            trend=self._trend(),
            leaks=self._leaks(),
            restarts=self._registry.restarts,
            refusals=self._registry.refusals,
            max_tasks=self._registry.gate.limits.max_tasks,
            open_breakers=[gate.name for gate in self._registry.gate.every() if gate.stopped],
            hook_failures=sum(hooks.failures for hooks in self._hooks),
        )

    def _eta_s(self) -> float | None:
        eta = eta_s(self._registry.entries())
        return None if eta is None else round(eta, 3)
