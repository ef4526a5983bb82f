"""May this pod be deleted now? A pure function of the request, of what the pod itself carries, and of the clock.

What must survive the loss of etcd is on the pod, so any replica, freshly started, answers right. The checks are a
chain: the first one that answers decides, and its cause is what is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ebbtide_operator.core import names
from ebbtide_operator.core.marks import format_second
from ebbtide_operator.core.model import PodView

TOO_MANY_REQUESTS = 429
UNKNOWN_S = 30.0
"""How long after a pod was made its workload may still be on its way to us; one that is not known then is none."""
CONTROLLERS = frozenset({names.REPLICASET_CONTROLLER, names.CONTROLLER_MANAGER})


class Cause(StrEnum):
    """Why a deletion passes or is held; the label of the metric."""

    NOT_A_CONTROLLER = "not_a_controller"
    """A person, the kubelet, garbage collection, a namespace's end: never held."""
    FORCED = "forced"
    """Grace period 0."""
    TERMINATING = "terminating"
    """Its end has begun already."""
    NOT_MANAGED = "not_managed"
    RELEASED = "released"
    """It is drained."""
    DEADLINE = "deadline"
    """Its deadline passed."""
    LEADER_SILENT = "leader_silent"
    """Fail open: nobody plans."""
    STORE_LOST = "store_lost"
    """Fail open: orders and reports do not get through."""
    DRAINING = "draining"
    """Held: it works."""
    WAITING = "waiting"
    """Held: it waits for a drain slot, or to be seen by the planner."""


FAIL_OPEN = frozenset({Cause.LEADER_SILENT, Cause.STORE_LOST})


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """The deletion that is asked for."""

    user: str
    pod: PodView
    """As the API server has it (`oldObject`)."""
    grace_period_s: int | None = None
    """Of the request; None: the pod's own."""


@dataclass(frozen=True, slots=True)
class HoldContext:
    """What this replica knows of the rest of Ebbtide."""

    leader_silent_s: float = 0.0
    """Seconds since a leader was last heard."""
    store_lost_s: float = 0.0
    """Seconds since the store last answered; 0 while it does."""
    fail_open_after_s: float = 10.0
    leader_limit_s: float = 25.0
    """A Lease may run out and be taken by another replica within this time: that is no silence."""
    managed: bool | None = None
    """Whether the workload is managed now; None: not known here."""
    workload: str = ""
    """For the message."""
    draining: int = 0
    """Pods of the workload that drain."""
    tasks: int | None = None
    """Tasks in flight in the pod; None: not known."""
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer; `code` and `message` are for a denial."""

    allow: bool
    cause: Cause
    message: str = ""
    code: int = TOO_MANY_REQUESTS


Check = Callable[[DeleteRequest, HoldContext, float], Cause | None]

ALLOWING: tuple[Check, ...] = (
    # Only the controllers of workloads are ever held.
    lambda request, _context, _now: None if request.user in CONTROLLERS else Cause.NOT_A_CONTROLLER,
    # Nobody stands in the way of force.
    lambda request, _context, _now: Cause.FORCED if request.grace_period_s == 0 else None,
    # One that ends cannot be held any more; this is the kubelet's last delete, or a repeated one.
    lambda request, _context, _now: Cause.TERMINATING if request.pod.terminating else None,
    # The label is what opted in; the webhook selects it, and may be selected wrongly.
    lambda request, _context, _now: None if request.pod.label == "true" else Cause.NOT_MANAGED,
    # The annotation was taken away, and the label is about to follow.
    lambda _request, context, _now: Cause.NOT_MANAGED if context.managed is False else None,
    # The one ordinary way out.
    lambda request, _context, _now: Cause.RELEASED if request.pod.released is not None else None,
    # Every wait has an end, whoever is dead.
    lambda request, _context, now: Cause.DEADLINE if _is_over(request.pod, now) else None,
    lambda _request, context, _now: Cause.LEADER_SILENT if context.leader_silent_s > context.leader_limit_s else None,
    lambda _request, context, _now: Cause.STORE_LOST if context.store_lost_s > context.fail_open_after_s else None,
    # Nobody plans for what is not known: the pods would wait for ever. Those with a deadline have an end.
    lambda request, context, now: (
        Cause.NOT_MANAGED if context.managed is None and _is_alone(request.pod, now) else None
    ),
)


def delete_verdict(request: DeleteRequest, context: HoldContext, now: float) -> Verdict:
    """Say whether a pod may be deleted.

    Args:
        request: Who asks for which pod.
        context: What this replica knows.
        now: Unix seconds.
    """
    for check in ALLOWING:
        cause = check(request, context, now)
        if cause is not None:
            return Verdict(allow=True, cause=cause)
    since = request.pod.draining_since
    if since is None:
        return Verdict(allow=False, cause=Cause.WAITING, message=_waiting(context))
    return Verdict(allow=False, cause=Cause.DRAINING, message=_draining(since, context))


def _is_alone(pod: PodView, now: float) -> bool:
    return (pod.draining_since is None or pod.deadline_at is None) and now >= pod.created_at + UNKNOWN_S


def _is_over(pod: PodView, now: float) -> bool:
    return pod.deadline_at is not None and now >= pod.deadline_at


def _waiting(context: HoldContext) -> str:
    of = f" of {context.workload}" if context.workload else ""
    count = "1 pod" if context.draining == 1 else f"{context.draining} pods"
    return f"ebbtide: waits for a drain slot; draining now: {count}{of}"


def _draining(since: float, context: HoldContext) -> str:
    text = f"ebbtide: draining since {format_second(since)}"
    if context.tasks is None:
        return f"{text}, tasks left unknown"
    text = f"{text}, {context.tasks} task{'' if context.tasks == 1 else 's'} left"
    return text if context.eta_s is None else f"{text}, about {context.eta_s:.0f} s"
