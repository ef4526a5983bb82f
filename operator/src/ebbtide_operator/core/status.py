"""The status of a Drain object: what `kubectl get drains` shows. No field changes with time alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ebbtide.protocol import RolloutPhase
from ebbtide_operator.core import reasons
from ebbtide_operator.core.fleet import Fleet, Member
from ebbtide_operator.core.marks import format_second
from ebbtide_operator.core.model import Problem, Snapshot

SHOWN_BLOCKERS = 5
SHOWN_DRAINS = 10
KINDS = {"deployment": "Deployment"}

Status = dict[str, object]


def drain_status(
    fleet: Fleet,
    chosen: Sequence[Member],
    phase: RolloutPhase,
    reason: str,
    message: str,
    now: float,
) -> Status:
    """Return the status of a managed workload; conditions come without their transition times.

    Args:
        fleet: The snapshot, sorted out.
        chosen: Pods that are ordered to drain by this very plan.
        phase: What it is going through.
        reason: Why it does or does not do the next step.
        message: The same for people.
        now: Unix seconds; decides which drains are late, and nothing else.
    """
    snapshot = fleet.snapshot
    draining = [*fleet.draining, *chosen]
    status: Status = {
        **_identity(snapshot),
        "phase": phase.value,
        "pods": _pods(fleet, chosen),
        "draining": len(draining),
        "tasksLeft": sum(member.tasks or 0 for member in draining),
        "surplus": fleet.surplus,
        "reason": reason,
        "message": message,
        "conditions": _conditions(fleet, draining, phase, reason, message, now),
        "lastDrains": [
            {
                "pod": record.pod,
                "outcome": record.outcome.value,
                "seconds": round(max(0.0, record.ended_at - record.started_at), 1),
                "tasksLost": record.active_at_end if record.outcome not in _NOTHING_LOST else 0,
                "endedAt": format_second(record.ended_at),
                "reason": record.reason,
            }
            for record in snapshot.recent[:SHOWN_DRAINS]
        ],
    }
    deadlines = [member.deadline_at for member in fleet.draining if member.deadline_at is not None]
    policy = snapshot.workload.policy
    if chosen:
        deadlines.append(now + policy.budget_s)
    if deadlines:
        status["deadline"] = format_second(max(deadlines))
    estimates = [member.live_report.eta_s if member.live_report else None for member in draining]
    known = [estimate for estimate in estimates if estimate is not None]
    if draining and len(known) == len(estimates):
        status["etaSeconds"] = round(max(known))
    if fleet.draining:
        slowest = sorted(fleet.draining, key=lambda member: (member.started_at or 0.0, member.pod.name))
        status["blockedBy"] = [_blocker(member) for member in slowest[:SHOWN_BLOCKERS]]
    return status


def invalid_status(snapshot: Snapshot, problems: Sequence[Problem]) -> Status:
    """Return the status of a workload whose annotations cannot be used."""
    message = "; ".join(problem.message for problem in problems)
    condition = _condition(snapshot, "Ready", holds=False, reason=reasons.INVALID_ANNOTATION, message=message)
    return {
        **_identity(snapshot),
        "reason": reasons.INVALID_ANNOTATION,
        "message": f"{message}; the workload runs as without Ebbtide",
        "conditions": [condition],
    }


def merge_status(old: Mapping[str, object] | None, new: Status, now: float) -> Status:
    """Give each condition its transition time: the old one where its status is the same, else now."""
    before = {}
    if old is not None and isinstance(conditions := old.get("conditions"), list):
        before = {one["type"]: one for one in conditions}
    merged = []
    fresh = new["conditions"]
    assert isinstance(fresh, list)
    for condition in fresh:
        known = before.get(condition["type"])
        same = known is not None and known["status"] == condition["status"]
        moment = known["lastTransitionTime"] if same and known is not None else format_second(now)
        merged.append({**condition, "lastTransitionTime": moment})
    return {**new, "conditions": merged}


_NOTHING_LOST = frozenset({"clean", "cancelled", "returned"})


def _identity(snapshot: Snapshot) -> Status:
    workload = snapshot.workload
    return {
        "observedGeneration": workload.generation,
        "workload": {"kind": KINDS[workload.key.kind], "name": workload.key.name},
        "mode": workload.policy.mode.value,
        "revision": workload.revision,
    }


def _pods(fleet: Fleet, chosen: Sequence[Member]) -> dict[str, int]:
    starting = {member.pod.uid for member in chosen}
    counts = {"total": 0, "serving": 0, "draining": 0, "drained": 0, "unknown": 0}
    for member in fleet.members:
        if not member.counts:
            continue
        counts["total"] += 1
        if member.pod.released is not None or member.drained is not None:
            counts["drained"] += 1
        elif member.live_report is None:
            counts["unknown"] += 1
        elif member.draining or member.pod.uid in starting:
            counts["draining"] += 1
        else:
            counts["serving"] += 1
    return counts


def _blocker(member: Member) -> Status:
    blocker: Status = {"pod": member.pod.name}
    if member.tasks is not None:
        blocker["tasks"] = member.tasks
    if member.started_at is not None:
        blocker["since"] = format_second(member.started_at)
    if member.deadline_at is not None:
        blocker["until"] = format_second(member.deadline_at)
    return blocker


def _conditions(
    fleet: Fleet, draining: Sequence[Member], phase: RolloutPhase, reason: str, message: str, now: float
) -> list[Status]:
    snapshot = fleet.snapshot
    late = [
        member.pod.name
        for member in fleet.draining
        if member.started_at is not None and now >= member.started_at + member.timeout_s and member.pod.released is None
    ]
    if late:
        blocked = (True, reasons.SLOW_DRAIN, f"past the drain timeout: {', '.join(late[:SHOWN_BLOCKERS])}")
    elif reason == reasons.BUDGET_SPENT:
        blocked = (True, reasons.BUDGET_SPENT, "more pods have to go than may drain at once")
    else:
        blocked = (False, reasons.READY, "nothing waits")
    warnings = [problem.message for problem in snapshot.workload.problems]
    moving = phase is not RolloutPhase.STABLE or bool(draining)
    return [
        _condition(snapshot, "Ready", holds=True, reason=reasons.READY, message="; ".join(warnings)),
        _condition(
            snapshot,
            "Progressing",
            holds=moving,
            reason=phase.value if moving else reasons.IDLE,
            message=message if moving else "no pod is too many",
        ),
        _condition(snapshot, "DrainBlocked", holds=blocked[0], reason=blocked[1], message=blocked[2]),
        _reach(fleet),
        _condition(
            snapshot,
            "Degraded",
            holds=not snapshot.store_ok,
            reason=reasons.READY if snapshot.store_ok else reasons.STORE_UNAVAILABLE,
            message="" if snapshot.store_ok else "etcd does not answer, or is full",
        ),
    ]


def _reach(fleet: Fleet) -> Status:
    snapshot = fleet.snapshot
    count = sum(member.counts and member.out_of_reach for member in fleet.members)
    if not count:
        return _condition(snapshot, "Unprotected", holds=False, reason=reasons.READY, message="")
    key = snapshot.workload.key
    pods = "1 pod was" if count == 1 else f"{count} pods were"
    message = (
        f"{pods} made without the floor (before the annotation, or while Ebbtide was away): not held; "
        f"kubectl rollout restart {key.kind}/{key.name} gives it to all"
    )
    return _condition(snapshot, "Unprotected", holds=True, reason=reasons.OUT_OF_REACH, message=message)


def _condition(snapshot: Snapshot, kind: str, *, holds: bool, reason: str, message: str) -> Status:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "observedGeneration": snapshot.workload.generation,
        "reason": reason,
        "message": message,
    }
