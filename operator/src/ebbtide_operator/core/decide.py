"""What to do next for one workload. Reads nothing, changes nothing.

Level-triggered: every rule looks at what is, never at what happened. So a snapshot that changed nothing gives an empty
plan, and whatever a crash left half-done is finished by the next plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ebbtide.protocol import Desired, Order, Outcome, Phase
from ebbtide_operator.core import ending, reasons, sizes
from ebbtide_operator.core.fleet import Fleet, Member, survey
from ebbtide_operator.core.model import (
    Action,
    Adopt,
    Mode,
    Notify,
    Pin,
    Plan,
    PublishPhase,
    Release,
    RemoveStatus,
    Return,
    SendOrder,
    Snapshot,
    WriteStatus,
)
from ebbtide_operator.core.rollout import rollout_phase
from ebbtide_operator.core.status import drain_status, invalid_status, merge_status

CENSUS_S = 0.5
"""How long to wait for the pods to answer a new phase before choosing among them."""
UNPINNED_S = 0.5
"""How long an idle pod may take to say that it is drained before it gets its pin: mostly it needs none."""
STATUS_PERIOD_S = 2.0
"""Least time between two writes of a status whose phase and conditions are the same."""
SLACK_S = 0.01
"""Looked at this much after a deadline, so that it has passed by every clock's rounding."""


def decide(snapshot: Snapshot, now: float) -> Plan:
    """Say what to do next for one workload.

    Args:
        snapshot: Everything there is to know.
        now: Unix seconds.
    """
    if snapshot.epoch == 0:
        return Plan(reason=reasons.NOT_LEADING)
    fleet = survey(snapshot)
    workload = snapshot.workload
    if workload.terminating:
        return _let_go(fleet, now, "", reasons.WORKLOAD_DELETED)
    match workload.policy.mode:
        case Mode.OFF:
            return _let_go(fleet, now, "", reasons.NOT_MANAGED)
        case Mode.FLOOR:
            return _let_go(fleet, now, "floor", reasons.FLOOR_ONLY)
        case Mode.MANAGED:
            return _manage(fleet, now)


def _let_go(fleet: Fleet, now: float, label: str, reason: str) -> Plan:
    """Hold nothing: take labels and marks off, and return what drains to service.

    The label goes last: without it the pod is out of sight, and an order to serve that it missed would not be repeated.
    """
    snapshot = fleet.snapshot
    actions: list[Action] = _deleted(fleet, now) if label else []
    for member in fleet.members:
        if not member.counts:
            continue
        actions += _returning(snapshot, member, now)
        if member.pod.label != label and (label or member.knows_that_it_serves):
            actions.append(Adopt(member.pod, label))
    if snapshot.store_ok:
        actions += ending.gone(snapshot, now)
    problems = [problem for problem in snapshot.workload.problems if problem.fatal]
    if problems and not snapshot.workload.terminating:
        status = merge_status(snapshot.status, invalid_status(snapshot, problems), now)
        if status != snapshot.status:
            actions += (WriteStatus(status), *_announce_problems(snapshot, status))
        return Plan(tuple(actions), reason=reasons.INVALID_ANNOTATION, message=problems[0].message)
    # The phase is in the store: while that is away its removal would be planned again and again.
    left = snapshot.status is not None or (snapshot.phase is not None and snapshot.store_ok)
    if left and not snapshot.workload.terminating:
        actions.append(RemoveStatus())
    return Plan(tuple(actions), reason=reason)


def _manage(fleet: Fleet, now: float) -> Plan:
    snapshot = fleet.snapshot
    phase, why = rollout_phase(snapshot.workload, fleet.surplus)
    published = _publish(snapshot, Phase(phase=phase, revision=snapshot.workload.revision, reason=why))
    actions: list[Action] = [*published, *_adopt(fleet)]
    back = [action for member in (*fleet.returning, *fleet.astray) for action in _returning(snapshot, member, now)]
    releases, kept, wakes = _keep(fleet, now)
    unborn = [Release(member.pod, Outcome.CLEAN, "it never started") for facts in fleet.sets for member in facts.unborn]
    chosen, waiting = _choose(fleet, now, phase_is_new=bool(published))
    actions += [*_unfinished_returns(fleet), *back, *releases, *unborn, *kept]
    actions += [action for member in chosen for action in _start(snapshot, member, now, why)]
    actions += _deleted(fleet, now)
    if snapshot.store_ok:
        actions += ending.gone(snapshot, now)
    if waiting is not None:
        wakes.append(waiting)
    asking, later = sizes.asking(fleet, now)
    wakes += later
    if unsized := (asking | sizes.taken_from(actions)) - snapshot.sized:
        return Plan(
            tuple(one for one in actions if not (sizes.takes(one) and one.pod.owner_uid in unsized)),
            requeue_after_s=_earliest_s(wakes, now),
            unsized=unsized,
        )
    reason, message = _say(fleet, chosen, waiting)
    status = merge_status(snapshot.status, drain_status(fleet, chosen, phase, reason, message, now), now)
    write, later_s = _write_status(snapshot, status, now)
    actions += [*_announce(fleet, chosen, releases), *write]
    if later_s is not None:
        wakes.append(now + later_s)
    return Plan(
        tuple(actions),
        requeue_after_s=_earliest_s(wakes, now),
        reason=reason,
        message=message,
        draining=len(fleet.draining) + len(chosen),
        surplus=fleet.surplus,
        tasks_left=sum(member.tasks or 0 for member in fleet.draining),
    )


def _earliest_s(wakes: Sequence[float], now: float) -> float | None:
    return max(0.0, min(wakes) - now) + SLACK_S if wakes else None


def _publish(snapshot: Snapshot, phase: Phase) -> list[Action]:
    known = snapshot.phase
    if not snapshot.store_ok or (known is not None and (known.phase, known.revision) == (phase.phase, phase.revision)):
        return []
    return [PublishPhase(phase)]


def _adopt(fleet: Fleet) -> list[Action]:
    return [Adopt(member.pod, "true") for member in fleet.members if member.counts and member.pod.label != "true"]


def _deleted(fleet: Fleet, now: float) -> list[Action]:
    """Tell pods that are being deleted, and know nothing of it, to drain and leave.

    Mostly SIGTERM or preStop comes first. A process that had no handler yet never saw its signal, since the kernel
    drops those to the first process of a container, and would serve until the grace period is over.
    """
    snapshot = fleet.snapshot
    if not snapshot.store_ok:
        return []
    return [
        SendOrder(member.pod, replace(_order(snapshot, member, Desired.DRAIN, now, reasons.POD_DELETED), leave=True))
        for member in fleet.members
        if member.unaware
    ]


def _unfinished_returns(fleet: Fleet) -> list[Action]:
    """Take off marks that a crash left on pods which were told to serve again."""
    return [Return(member.pod) for member in fleet.members if member.counts and member.marked and not member.draining]


def _returning(snapshot: Snapshot, member: Member, now: float) -> list[Action]:
    """Take a drain back: the record, the order to serve, then the marks."""
    if not member.untold:
        return [Return(member.pod)] if member.marked else []
    if not snapshot.store_ok:
        # Marks without a drain would be a lie: both go together, once the order can be sent.
        return []
    record = ending.returned(member, snapshot, now)
    order = _order(snapshot, member, Desired.SERVE, now, reasons.RETURNED)
    actions: list[Action] = [] if record is None else [record]
    actions.append(SendOrder(member.pod, order))
    if member.marked:
        actions.append(Return(member.pod))
    return actions


def _keep(fleet: Fleet, now: float) -> tuple[list[Release], list[Action], list[float]]:
    """Go on with the drains under way: who is released, what is repaired, when to look again."""
    releases: list[Release] = []
    repairs: list[Action] = []
    wakes: list[float] = []
    for member in fleet.keeping:
        if member.pod.released is not None:
            continue
        over = ending.release(member, now)
        if over is not None:
            releases.append(over)
            continue
        if member.deadline_at is not None:
            wakes.append(member.deadline_at)
        repair, again_at = _repair(fleet.snapshot, member, now)
        repairs += repair
        if again_at is not None:
            wakes.append(again_at)
    return releases, repairs, wakes


def _repair(snapshot: Snapshot, member: Member, now: float) -> tuple[list[Action], float | None]:
    """Finish what a crash, a lost store or our own thrift left out of a start."""
    started = member.started_at or now
    if member.order is None:
        # The store lost the order; the pod keeps its deadline.
        if not snapshot.store_ok:
            return [], None
        return [SendOrder(member.pod, _order(snapshot, member, Desired.DRAIN, now, "OrderLost"))], None
    if member.pod.draining_since is not None and member.pod.deadline_at is not None:
        return [], None
    if _thrifty(snapshot, member) and started <= now < started + UNPINNED_S:
        return [], started + UNPINNED_S
    return [Pin(member.pod, started, started + member.budget_s)], None


def _choose(fleet: Fleet, now: float, *, phase_is_new: bool) -> tuple[tuple[Member, ...], float | None]:
    """Return the pods to order now, or when the census that they wait for is over."""
    snapshot = fleet.snapshot
    victims = fleet.victims if snapshot.store_ok else ()
    if not victims:
        return (), None
    if len(victims) == len(fleet.pool):
        return victims, None
    if phase_is_new:
        # The pods are asked by the phase that this plan publishes; its arrival wakes us.
        return (), now + CENSUS_S
    over_at = snapshot.phase_at + CENSUS_S
    # A census from the future is one from before the clock was set back.
    if not snapshot.phase_at <= now < over_at or not any(_owes_answer(snapshot, member) for member in fleet.pool):
        return victims, None
    return (), over_at


def _owes_answer(snapshot: Snapshot, member: Member) -> bool:
    report = member.live_report
    return report is not None and report.phase_revision < snapshot.phase_revision


def _start(snapshot: Snapshot, member: Member, now: float, why: str) -> list[Action]:
    if member.out_of_reach:
        # It would work on, and take more, until the hold ends: SIGTERM is the only thing that it hears.
        return [Release(member.pod, Outcome.UNKNOWN, "it was made without the floor and never spoke")]
    order = _order(snapshot, member, Desired.DRAIN, now, why)
    send = SendOrder(member.pod, order)
    if _thrifty(snapshot, member):
        return [send]
    budget_s = order.quiesce_s + order.drain_timeout_s + order.cancel_grace_s
    return [send, Pin(member.pod, now, now + budget_s)]


def _thrifty(snapshot: Snapshot, member: Member) -> bool:
    """Whether a pod will be drained before a pin could matter: idle, and with nothing to wait for."""
    return snapshot.workload.policy.quiesce_s == 0 and member.tasks == 0


def _order(snapshot: Snapshot, member: Member, desired: Desired, now: float, why: str) -> Order:
    workload, policy = snapshot.workload, snapshot.workload.policy
    revision = next((one.revision for one in workload.sets if one.uid == member.pod.owner_uid), "")
    return Order(
        desired=desired,
        generation=member.next_generation,
        epoch=snapshot.epoch,
        reason=why,
        quiesce_s=policy.quiesce_s,
        drain_timeout_s=policy.drain_timeout_s,
        cancel_grace_s=policy.cancel_grace_s,
        issued_at=now,
        pod=member.pod.name,
        workload=f"{workload.key.kind}/{workload.key.name}",
        revision=revision,
        active=member.tasks or 0,
    )


def _say(fleet: Fleet, chosen: Sequence[Member], waiting: float | None) -> tuple[str, str]:
    """Return the reason and the sentence that a user reads."""
    draining = len(fleet.draining) + len(chosen)
    if not fleet.snapshot.store_ok:
        return reasons.STORE_UNAVAILABLE, "etcd does not answer, or is full: no new drains; deletions pass meanwhile"
    if waiting is not None:
        have = "1 pod has" if fleet.wanted == 1 else f"{fleet.wanted} pods have"
        return reasons.CENSUS, f"{have} to go; asking all for their load"
    left = fleet.wanted - len(chosen)
    if left > 0:
        return reasons.BUDGET_SPENT, f"{draining} of at most {fleet.limit} pods drain; {left} more to follow"
    if draining:
        return reasons.DRAINING, "1 pod drains" if draining == 1 else f"{draining} pods drain"
    return reasons.IDLE, "no pod is too many"


def _write_status(snapshot: Snapshot, status: dict[str, object], now: float) -> tuple[list[Action], float | None]:
    """Write a status that says something new at once, and one with other details once per second."""
    if snapshot.status == status:
        return [], None
    age_s = now - snapshot.status_at
    if snapshot.status is None or not 0 <= age_s < STATUS_PERIOD_S or _words(snapshot.status) != _words(status):
        return [WriteStatus(status)], None
    return [], STATUS_PERIOD_S - age_s


def _words(status: Mapping[str, object]) -> object:
    """Return the parts of a status that somebody waits for; all others change with every pod that comes or goes."""
    conditions = status.get("conditions")
    kinds = [(one["type"], one["status"]) for one in conditions] if isinstance(conditions, list) else conditions
    words = ("phase", "revision", "mode", "observedGeneration")
    return kinds, *(status.get(name) for name in words)


def _announce(fleet: Fleet, chosen: Sequence[Member], releases: Iterable[Release]) -> list[Action]:
    """Post one Event for each thing that happens to the workload, not one for each pod."""
    events: list[Action] = []
    told = [member for member in chosen if not member.out_of_reach]
    if told:
        pods = _names(member.pod.name for member in told)
        timeout_s = fleet.snapshot.workload.policy.drain_timeout_s
        events.append(Notify(reasons.STARTED, f"draining {pods}; tasks have {timeout_s:g} s"))
    if len(told) < len(chosen):
        pods = _names(member.pod.name for member in chosen if member.out_of_reach)
        text = f"released {pods}: made without the floor, so that no order reaches them; they end as without Ebbtide"
        events.append(Notify(reasons.OUT_OF_REACH, text, warning=True))
    back = [member for member in fleet.returning if member.ordered and fleet.snapshot.store_ok]
    if back:
        events.append(Notify(reasons.RETURNED, f"{_names(member.pod.name for member in back)} serve again"))
    events += (
        Notify(reasons.INCOMPLETE, f"released {one.pod.name}: {one.message}", warning=True)
        for one in releases
        if one.outcome is not Outcome.CLEAN
    )
    return events


def _announce_problems(snapshot: Snapshot, status: dict[str, object]) -> list[Action]:
    """Post an Event for each annotation that cannot be used, when its condition changes."""
    before = (snapshot.status or {}).get("message")
    if before == status.get("message"):
        return []
    return [
        Notify(reasons.INVALID_ANNOTATION, f"{problem.message}; the workload runs as without Ebbtide", warning=True)
        for problem in snapshot.workload.problems
        if problem.fatal
    ]


def _names(pods: Iterable[str]) -> str:
    names = sorted(pods)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
