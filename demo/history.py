"""What happened to the pods of the demo, as the API server's watch told it, and what can be read from that.

Pure: no clock, no I/O. Times are Unix seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from ebbtide_operator.core import names

DEPLOYMENT_LABEL = "app"
"""Label of the demo's pods that names their Deployment."""


@dataclass(frozen=True, slots=True)
class Pod:
    """The parts of a pod that the demo reads, at one moment."""

    name: str
    deployment: str
    template: str
    """Hash of the template that it was made from."""
    ready: bool = False
    terminating: bool = False
    draining_since: float | None = None
    """When Ebbtide told it to drain; None: it did not, or took it back."""

    @property
    def serving(self) -> bool:
        """True where it gets new orders and is meant to."""
        return self.ready and not self.terminating and self.draining_since is None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Project a pod of the API; a field that is missing has its default."""
        metadata = document["metadata"]
        labels = metadata.get("labels", {})
        since = metadata.get("annotations", {}).get(names.DRAINING_SINCE)
        conditions = document.get("status", {}).get("conditions", [])
        return cls(
            name=metadata["name"],
            deployment=labels.get(DEPLOYMENT_LABEL, ""),
            template=labels.get(names.TEMPLATE_HASH, ""),
            ready=any(item["type"] == "Ready" and item["status"] == "True" for item in conditions),
            terminating="deletionTimestamp" in metadata,
            draining_since=datetime.fromisoformat(since).timestamp() if since else None,
        )


@dataclass(frozen=True, slots=True)
class PodEvent:
    """A pod changed, or is gone."""

    at: float
    """When the watch delivered it."""
    pod: Pod
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """What a scene wants of a Deployment in the end."""

    replicas: int
    template: str
    """Hash of a template: the one to have, or with `changed` the one to be rid of."""
    changed: bool = False

    def reached(self, pods: Iterable[Pod]) -> bool:
        """True where there are only the wanted pods, all of them serving; a terminating pod is not wanted."""
        wanted = [pod for pod in pods if pod.serving and (pod.template != self.template) == self.changed]
        return len(wanted) == self.replicas and len(wanted) == sum(1 for _ in pods)


@dataclass(frozen=True, slots=True)
class Removal:
    """How one pod went. Either time is None where it did not come to that."""

    pod: str
    template: str
    told_to_drain_at: float | None
    """By Ebbtide, and never taken back."""
    deleted_at: float | None
    """When its deletion was accepted."""
    gone_at: float | None

    @property
    def taken_at(self) -> float:
        """The moment from which it could not stay."""
        return min(at for at in (self.told_to_drain_at, self.deleted_at, self.gone_at) if at is not None)


@dataclass(frozen=True, slots=True)
class Moment:
    """How many pods there were from one moment on, until the next one."""

    after_s: float
    pods: int
    old: int
    """Of the template before the scene, terminating ones included."""
    serving: int
    draining: int
    """Told to drain by Ebbtide, not yet terminating."""
    terminating: int


class History:
    """The pods of one Deployment over time.

    Args:
        deployment: Its name.
        events: In the order of the watch; other Deployments' are skipped.
    """

    def __init__(self, deployment: str, events: Iterable[PodEvent]) -> None:
        self.deployment = deployment
        self._events = [event for event in events if event.pod.deployment == deployment]
        self._times: list[float] = []
        self._states: list[dict[str, Pod]] = []
        pods: dict[str, Pod] = {}
        for event in self._events:
            pods = {**pods, event.pod.name: event.pod}
            if event.gone:
                del pods[event.pod.name]
            self._times.append(event.at)
            self._states.append(pods)

    def at(self, moment: float) -> dict[str, Pod]:
        """Return the pods by name as they were at a moment."""
        index = bisect_right(self._times, moment)
        return self._states[index - 1] if index else {}

    def _within(self, start: float, end: float) -> list[dict[str, Pod]]:
        return [self.at(start), *self._states[bisect_right(self._times, start) : bisect_right(self._times, end)]]

    def peak_pods(self, start: float, end: float) -> int:
        """Return the largest number of pods that existed at once, terminating ones included."""
        return max(len(pods) for pods in self._within(start, end))

    def least_serving(self, start: float, end: float) -> int:
        """Return the smallest number of pods that served at once."""
        return min(sum(pod.serving for pod in pods.values()) for pods in self._within(start, end))

    def timeline(self, start: float, end: float, before: str) -> tuple[Moment, ...]:
        """Return every change of the numbers between two moments; `before` is the hash of the old template."""
        moments: list[Moment] = []
        first, last = bisect_right(self._times, start), bisect_right(self._times, end)
        times = [start, *self._times[first:last]]
        for at, pods in zip(times, self._within(start, end), strict=True):
            seen = pods.values()
            moment = Moment(
                round(at - start, 3),
                len(pods),
                sum(pod.template == before for pod in seen),
                sum(pod.serving for pod in seen),
                sum(pod.draining_since is not None and not pod.terminating for pod in seen),
                sum(pod.terminating for pod in seen),
            )
            if not moments or replace(moment, after_s=moments[-1].after_s) != moments[-1]:
                moments.append(moment)
        return tuple(moments)

    def reached_at(self, goal: Goal, start: float) -> float | None:
        """Return when a goal was first reached, not before `start`; None: never."""
        first = bisect_right(self._times, start)
        for at, pods in [(start, self.at(start)), *zip(self._times[first:], self._states[first:], strict=True)]:
            if goal.reached(list(pods.values())):
                return at
        return None

    def removals(self, start: float, end: float, deletions: Mapping[str, float]) -> tuple[Removal, ...]:
        """Return the pods that were taken between two moments, in the order in which they were.

        Args:
            start: Unix time in seconds.
            end: Unix time in seconds.
            deletions: Exact times of accepted deletions by pod name, where something knows them better than the watch.
        """
        last: dict[str, Pod] = {}
        deleted: dict[str, float] = {}
        gone: dict[str, float] = {}
        for event in self._events:
            if event.at > end:
                break
            last[event.pod.name] = event.pod
            if event.pod.terminating:
                deleted.setdefault(event.pod.name, event.at)
            if event.gone:
                gone[event.pod.name] = event.at
        removals = [
            Removal(
                name,
                pod.template,
                pod.draining_since,
                deletions.get(name, deleted.get(name)) if name in deleted or name in gone else None,
                gone.get(name),
            )
            for name, pod in last.items()
            if name in deleted or name in gone or pod.draining_since is not None
        ]
        return tuple(
            sorted((item for item in removals if start <= item.taken_at <= end), key=lambda item: item.taken_at)
        )


def first_ready(events: Sequence[PodEvent]) -> dict[str, float]:
    """Return when each pod was first seen to be ready, by pod name; one that never was is left out."""
    ready: dict[str, float] = {}
    for event in events:
        if event.pod.ready:
            ready.setdefault(event.pod.name, event.at)
    return ready


def drain_orders(events: Sequence[PodEvent]) -> dict[str, list[float]]:
    """Return every time that Ebbtide told a pod to drain, by pod name; a drain that was taken back counts."""
    orders: dict[str, list[float]] = {}
    for event in events:
        since = event.pod.draining_since
        if since is not None and since not in orders.setdefault(event.pod.name, []):
            orders[event.pod.name].append(since)
    return orders
