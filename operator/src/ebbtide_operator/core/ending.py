"""How drains end: who may be released, and what is written down about pods that are gone."""

from __future__ import annotations

from collections.abc import Iterator

from ebbtide.protocol import Desired, DrainRecord, Order, Outcome
from ebbtide_operator.core.fleet import Member, abandoned_in_drain, answer_to
from ebbtide_operator.core.model import Action, Forget, Release, ReportView, Snapshot, WriteRecord


def release(member: Member, now: float) -> Release | None:
    """Return the release of a draining pod that may go: it is drained, or its deadline passed."""
    outcome = member.drained
    if outcome is not None:
        return Release(member.pod, outcome, _spoken(outcome, member))
    deadline_at = member.deadline_at
    if deadline_at is None or now < deadline_at:
        return None
    if member.live_report is None:
        return Release(member.pod, Outcome.UNKNOWN, "the deadline passed without a word from the pod")
    return Release(
        member.pod, Outcome.ABANDONED, f"the deadline passed with {member.live_report.active} tasks in flight"
    )


def gone(snapshot: Snapshot, now: float) -> Iterator[Action]:
    """Yield what is to be written and forgotten of pods that the snapshot has records of but not the pods.

    The order says that the end is not written yet, so it is forgotten last, in one write with the record. An operator
    of before wrote twice, and a crash between the two left both: then the history says that this end is known.
    """
    # Of a pod that failed nothing runs any more, and its object may stay for days.
    present = {pod.uid for pod in snapshot.pods if not pod.finished}
    for uid in sorted(snapshot.orders.keys() - present):
        order = snapshot.orders[uid]
        if order.desired is not Desired.SERVE and not _is_written(snapshot, uid, order.issued_at):
            yield WriteRecord(_record(uid, order, snapshot.reports.get(uid), now))
        yield Forget(snapshot.workload.key.namespace, uid)


def returned(member: Member, snapshot: Snapshot, now: float) -> WriteRecord | None:
    """Return the record of a drain that is taken back; None where there was none, or a crash left it in the history."""
    if not member.untold:
        return None
    order, report = member.order, member.report
    started_at = order.issued_at if order is not None and order.issued_at else member.started_at or now
    if _is_written(snapshot, member.pod.uid, started_at):
        return None
    return WriteRecord(
        DrainRecord(
            pod=member.pod.name,
            uid=member.pod.uid,
            outcome=Outcome.RETURNED,
            reason="" if order is None else order.reason,
            revision="" if order is None else order.revision,
            started_at=started_at,
            ended_at=now,
            active_at_start=0 if order is None else order.active,
            active_at_end=0 if report is None else report.active,
            tally={} if report is None else report.tally,
        )
    )


def _record(uid: str, order: Order, view: ReportView | None, now: float) -> DrainRecord:
    report = None if view is None else view.report
    return DrainRecord(
        pod=order.pod,
        uid=uid,
        outcome=_outcome(order, view, now),
        reason=order.reason,
        revision=order.revision,
        started_at=order.issued_at,
        ended_at=now,
        active_at_start=order.active,
        active_at_end=order.active if report is None else report.active,
        tally={} if report is None else report.tally,
        drain=None if report is None else report.drain,
    )


def _outcome(order: Order, view: ReportView | None, now: float) -> Outcome:
    """Judge by what the pod said last; the annotation that released it is gone with the pod."""
    report = None if view is None else view.report
    if (said := answer_to(order, report)) is not None:
        return said
    budget_s = order.quiesce_s + order.drain_timeout_s + order.cancel_grace_s
    if order.issued_at and now >= order.issued_at + budget_s:
        return Outcome.UNKNOWN if report is None else Outcome.ABANDONED
    return Outcome.LOST


def _is_written(snapshot: Snapshot, uid: str, started_at: float) -> bool:
    return any(record.uid == uid and record.started_at == started_at for record in snapshot.recent)


def _spoken(outcome: Outcome, member: Member) -> str:
    report = member.report
    left = 0 if report is None else max(report.active, abandoned_in_drain(report))
    match outcome:
        case Outcome.CLEAN:
            return "every task ended by itself"
        case Outcome.CANCELLED:
            return "tasks were cancelled at the drain timeout, and ended"
        case _:
            return f"{left} tasks were still running when the budget was spent"
