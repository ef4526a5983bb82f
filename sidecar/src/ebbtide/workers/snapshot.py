"""What one worker counts, and how workers add up to a pod. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from ebbtide.admin.exposition import Numbers
from ebbtide.protocol import PodState, Report
from ebbtide.workers.drains import merged_drain

Counts = Mapping[str, Mapping[str, int]]
"""Counters by kind and name: `tally` by outcome, `refusals` by reason, and `more`."""

ADVANCE = (
    PodState.SERVING,
    PodState.STARTING,
    PodState.QUIESCING,
    PodState.DRAINING,
    PodState.CANCELLING,
    PodState.DRAINED,
    PodState.EXITING,
)
"""From the least advanced. One worker that serves makes a pod that serves: others start and leave all the time."""

DONE = frozenset({PodState.DRAINED, PodState.EXITING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One worker as it was at one moment."""

    worker: str
    """Random per process."""
    pid: int
    parent: int
    """Process id of its parent."""
    report: Report
    """What it would tell the operator if it were alone."""
    ready: bool = False
    awaited: int = 0
    """Tasks in flight that were not counted as abandoned yet."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, int] = field(default_factory=dict)
    """`late_arrivals`, `restarts`, `hook_failures`."""
    max_tasks: int | None = None
    open_breakers: Sequence[str] = ()
    leaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> Counts:
        return {"tally": self.report.tally, "refusals": self.refusals, "more": self.more}

    def encode(self) -> dict[str, Any]:
        """Return it as JSON."""
        document = asdict(replace(self, report=Report(state=PodState.SERVING, sequence=0, boot_id="")))
        return document | {"report": self.report.encode().decode()}

    @classmethod
    def decode(cls, document: Mapping[str, Any]) -> Self:
        """Read what `encode` made.

        Raises:
            TypeError: A field is missing or is not known.
            RecordError: The report cannot be read.
        """
        return cls(**{**document, "report": Report.decode(document["report"].encode())})


def snapshot_of(worker: str, pid: int, parent: int, report: Report, numbers: Numbers, *, awaited: int) -> Snapshot:
    """Return what a worker tells of itself, from what it would tell the operator and Prometheus."""
    return Snapshot(
        worker=worker,
        pid=pid,
        parent=parent,
        report=report,
        awaited=awaited,
        refusals=numbers.refusals,
        more={
            "late_arrivals": numbers.late_arrivals,
            "restarts": numbers.restarts,
            "hook_failures": numbers.hook_failures,
        },
        max_tasks=numbers.max_tasks,
        open_breakers=tuple(numbers.open_breakers),
        leaks=numbers.leaks,
    )


def added(one: Counts, other: Counts, sign: int = 1) -> Counts:
    """Return the sum of two sets of counters; `sign=-1`: what is left of the first without the second."""
    return {
        kind: {
            name: total
            for name in sorted({*one.get(kind, {}), *other.get(kind, {})})
            if (total := one.get(kind, {}).get(name, 0) + sign * other.get(kind, {}).get(name, 0))
        }
        for kind in sorted({*one, *other})
    }


def lost_with(snapshot: Snapshot) -> Counts:
    """Return the counters of a worker that is gone: what it still had in flight was abandoned, once."""
    lost: Counts = {"tally": {"abandoned": snapshot.awaited}} if snapshot.awaited else {}
    return added(snapshot.counts, lost)


def least_advanced(states: Iterable[PodState]) -> PodState:
    """Return the state of a pod whose workers are in these; one without workers starts."""
    return min(states, key=ADVANCE.index, default=PodState.STARTING)


def merged_report(
    workers: Sequence[Snapshot], gone: Counts, *, sequence: int, boot_id: str, phase_revision: int
) -> Report:
    """Return the report of a pod.

    Args:
        workers: Those that live.
        gone: The counters of those that do not.
        sequence: As for `Report`, here and in the next two.
        boot_id: Of the pod, not of a worker.
        phase_revision: The phase that this report answers.
    """
    reports = [each.report for each in workers]
    # One that exits obeys nothing any more: the order is obeyed when all others did.
    obeying = [report for report in reports if report.state is not PodState.EXITING] or reports
    busy = [report for report in reports if report.active]
    etas = [report.eta_s for report in busy if report.eta_s is not None]
    total = gone
    for each in workers:
        total = added(total, each.counts)
    state = least_advanced(report.state for report in reports)
    drains = [report.drain for report in reports if report.drain is not None]
    return Report(
        state=state,
        sequence=sequence,
        boot_id=boot_id,
        generation=min((report.generation for report in obeying), default=0),
        active=sum(report.active for report in reports),
        oldest_age_s=max((report.oldest_age_s for report in reports), default=0.0),
        # Who cannot tell may take the longest.
        eta_s=max(etas, default=0.0) if len(etas) == len(busy) else None,
        tally=total.get("tally", {}),
        forced=any(report.forced for report in reports),
        phase_revision=phase_revision,
        drain=merged_drain(drains) if state in DONE else None,
    )


def merged_numbers(own: Numbers, workers: Sequence[Snapshot], gone: Counts) -> Numbers:
    """Return the metrics of a pod; `own`: of the worker that answers, for what does not add up."""
    report = merged_report(workers, gone, sequence=0, boot_id="", phase_revision=0)
    total = gone
    for each in workers:
        total = added(total, each.counts)
    more = total.get("more", {})
    limits = [each.max_tasks for each in workers if each.max_tasks is not None]
    return replace(
        own,
        state=report.state,
        active=report.active,
        oldest_age_s=report.oldest_age_s,
        tally=report.tally,
        late_arrivals=more.get("late_arrivals", 0),
        restarts=more.get("restarts", 0),
        hook_failures=more.get("hook_failures", 0),
        refusals={**dict.fromkeys(own.refusals, 0), **total.get("refusals", {})},
        max_tasks=sum(limits) if len(limits) == len(workers) else None,
        open_breakers=sorted({name for each in workers for name in each.open_breakers}),
        leaks={rule: sum(each.leaks.get(rule, 0) for each in workers) for rule in own.leaks},
    )
