"""From what was recorded in a scene to one row of the table. Pure: no clock, no I/O; times are Unix seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from examples.orders.orders.accounts import Fate, OrderRecord, count_fates, in_flight
from examples.orders.orders.marks import Mark, MarkKind

from .audit import Write, WriteCount, accepted_deletions, count_writes, pod_deletions
from .history import Goal, History, Moment, PodEvent, Removal, drain_orders, first_ready
from .measures import interrupted_for_nothing, percentile, signal_latencies
from .releases import release_latencies


@dataclass(frozen=True, slots=True)
class Course:
    """What a scene did to one Deployment, and when."""

    deployment: str
    before: str
    """Hash of its template before the scene."""
    replicas: int
    """How many it has in the end."""
    began_at: float
    """When the first command of the scene returned."""
    last_command_at: float
    """When the last one did; the same moment where there was but one."""
    status_at: float | None
    """When `kubectl rollout status`, started right after the last command, called it over."""
    goal: Goal
    surplus: int | None
    """How many pods of the template that stays had to go; None: that template had to go as a whole."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Everything that was seen while a scene went on."""

    scene: str
    ended_at: float
    courses: tuple[Course, ...]
    orders: tuple[OrderRecord, ...]
    marks: tuple[Mark, ...]
    events: tuple[PodEvent, ...]
    writes: tuple[Write, ...]
    releases: Mapping[str, float] = field(default_factory=dict)
    """When Ebbtide decided to let each pod go, by pod name."""


@dataclass(frozen=True, slots=True)
class Row:
    """One Deployment in one scene. Durations in seconds; None: not measured, or it did not come to that."""

    scene: str
    deployment: str
    sent: int
    finished: int
    lost: int
    duplicated: int
    turned_away: int
    open: int
    refusals: int
    interrupted_for_nothing: int
    over_s: float | None
    status_s: float | None
    peak_pods: int
    least_serving: int
    signal_p50_s: float | None
    signal_p99_s: float | None
    signals: int
    """How many latencies the percentiles are of."""
    starting: int
    """Decisions on pods that had never been ready, which are in no percentile: what is to know does not run yet."""
    starting_signal_s: float | None
    """The longest of them until the pod's code knew."""
    closed_p50_s: float | None
    """From the decision to closed intake: the quiesce time and what came on top."""
    release_p50_s: float | None
    """From the decision to let a pod go to its accepted deletion."""
    release_p99_s: float | None
    removed_pods: int
    writes_per_pod: float | None
    own_writes_per_pod: float | None
    own_pod_writes_per_pod: float | None
    """Of those, the ones to the pods themselves."""
    held_requests: int
    removals: tuple[Removal, ...] = field(default=(), repr=False)
    timeline: tuple[Moment, ...] = field(default=(), repr=False)

    @property
    def kept(self) -> bool:
        """True where no order was lost or done twice, none is undecided, and the Deployment got where it should."""
        return self.lost == self.duplicated == self.open == 0 and self.over_s is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(recording: Recording, course: Course, now: float, namespace: str, operator_namespace: str) -> Row:
    """Work out one row.

    Args:
        recording: Of the whole scene.
        course: Of the Deployment in question.
        now: When the orders are classed; all of them are decided by then or count as open.
        namespace: Of the Deployments.
        operator_namespace: Of the operator, whose writes are told apart.
    """
    orders = [order for order in recording.orders if order.deployment == course.deployment]
    fates = count_fates(orders, now)
    history = History(course.deployment, recording.events)
    over_at = history.reached_at(course.goal, course.last_command_at)
    end = over_at if over_at is not None else recording.ended_at
    deletions = pod_deletions(recording.writes, namespace)
    removals = history.removals(course.began_at, recording.ended_at, deletions)
    own = [event for event in recording.events if event.pod.deployment == course.deployment]
    decided, starting = _decisions(course, own, removals)
    told = _marks(recording, MarkKind.TOLD)
    latencies = signal_latencies(decided, told)
    closed = signal_latencies(decided, _marks(recording, MarkKind.CLOSED))
    accepted = {item.pod: item.deleted_at for item in removals if item.deleted_at is not None}
    accepted |= accepted_deletions(recording.writes, namespace)
    ours = {event.pod.name for event in own}
    releases = release_latencies(
        {pod: at for pod, at in recording.releases.items() if pod in ours and at >= course.began_at}, accepted
    )
    writes = _writes(recording, course, history, namespace, operator_namespace)
    gone = sum(item.gone_at is not None for item in removals)
    return Row(
        scene=recording.scene,
        deployment=course.deployment,
        sent=len(orders),
        finished=fates[Fate.FINISHED],
        lost=fates[Fate.LOST],
        duplicated=fates[Fate.DUPLICATED],
        turned_away=fates[Fate.TURNED_AWAY],
        open=fates[Fate.OPEN],
        refusals=sum(order.refusals for order in orders),
        interrupted_for_nothing=_interrupted(course, history, removals, orders),
        over_s=over_at - course.last_command_at if over_at is not None else None,
        status_s=course.status_at - course.last_command_at if course.status_at is not None else None,
        peak_pods=history.peak_pods(course.began_at, end),
        least_serving=history.least_serving(course.began_at, end),
        signal_p50_s=percentile(latencies, 50),
        signal_p99_s=percentile(latencies, 99),
        signals=len(latencies),
        starting=sum(map(len, starting.values())),
        starting_signal_s=max(signal_latencies(starting, told), default=None),
        closed_p50_s=percentile(closed, 50),
        release_p50_s=percentile(releases, 50),
        release_p99_s=percentile(releases, 99),
        removed_pods=gone,
        writes_per_pod=_per(gone, writes.accepted),
        own_writes_per_pod=_per(gone, writes.by_ebbtide),
        own_pod_writes_per_pod=_per(gone, writes.to_pods_by_ebbtide),
        held_requests=writes.held,
        removals=removals,
        timeline=history.timeline(course.began_at, recording.ended_at, course.before),
    )


def _per(pods: int, count: int | None) -> float | None:
    return count / pods if pods and count is not None else None


def _marks(recording: Recording, kind: MarkKind) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for mark in recording.marks:
        if mark.kind is kind:
            times.setdefault(mark.pod, []).append(mark.at)
    return times


def _decisions(
    course: Course, events: Sequence[PodEvent], removals: Sequence[Removal]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return when it was decided that pods go, by pod: those that had been ready by then, and those that still started.

    A drain order where there was one, taken back or not, and a deletion where there was none.
    """
    decided = {pod: [at for at in times if at >= course.began_at] for pod, times in drain_orders(events).items()}
    for removal in removals:
        if removal.deleted_at is not None and not decided.get(removal.pod):
            decided[removal.pod] = [removal.deleted_at]
    ready = first_ready(events)
    served, starting = dict[str, list[float]](), dict[str, list[float]]()
    for pod, times in decided.items():
        for at in times:
            (served if ready.get(pod, math.inf) <= at else starting).setdefault(pod, []).append(at)
    return served, starting


def _interrupted(course: Course, history: History, removals: Sequence[Removal], orders: Sequence[OrderRecord]) -> int:
    if course.surplus is None:
        return 0

    def standing(moment: float) -> list[str]:
        return [pod.name for pod in history.at(moment).values() if pod.template == course.before]

    return interrupted_for_nothing(
        [item for item in removals if item.template == course.before],
        standing,
        lambda moment: in_flight(orders, moment),
        course.surplus,
    )


def _writes(
    recording: Recording, course: Course, history: History, namespace: str, operator_namespace: str
) -> WriteCount:
    before = set(history.at(course.began_at))
    created = {
        event.pod.name
        for event in recording.events
        if event.pod.deployment == course.deployment and course.began_at < event.at <= recording.ended_at
    } - before
    return count_writes(
        [write for write in recording.writes if course.began_at <= write.at <= recording.ended_at],
        namespace,
        course.deployment,
        len(created),
        operator_namespace,
    )
