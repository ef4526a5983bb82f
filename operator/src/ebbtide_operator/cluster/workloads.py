"""A cache of Deployments and their ReplicaSets, fed by the handlers, read by everyone else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ebbtide_operator.core import names
from ebbtide_operator.core.annotations import read_policy
from ebbtide_operator.core.model import Mode, Policy, ReplicaSetView, WorkloadKey, WorkloadView

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Set:
    """A ReplicaSet and the Deployment that controls it."""

    view: ReplicaSetView
    owner_uid: str
    namespace: str


class Workloads:
    """Every Deployment that opted in, or did, with its ReplicaSets.

    Args:
        defaults: What a policy is where its annotations say nothing.
        on_change: Called with the key of a workload that changed.
    """

    def __init__(self, defaults: Policy, on_change: Callable[[WorkloadKey], None]) -> None:
        self._defaults = defaults
        self._on_change = on_change
        self._deployments: dict[str, WorkloadView] = {}
        self._uids: dict[WorkloadKey, str] = {}
        self._sets: dict[str, _Set] = {}
        self._sets_of: dict[str, set[str]] = {}

    def keys(self) -> list[WorkloadKey]:
        return list(self._uids)

    def get(self, key: WorkloadKey) -> WorkloadView | None:
        """Return a Deployment with its ReplicaSets; None: there is none of that name, or it never opted in."""
        uid = self._uids.get(key)
        return None if uid is None else self._with_sets(self._deployments[uid])

    def owning(self, replica_set_uid: str) -> WorkloadView | None:
        """Return the workload that a ReplicaSet belongs to; None: not known here."""
        found = self._sets.get(replica_set_uid)
        deployment = None if found is None else self._deployments.get(found.owner_uid)
        return None if deployment is None else self._with_sets(deployment)

    def knows(self, replica_set_uid: str) -> bool:
        return replica_set_uid in self._sets

    def take_deployment(self, document: Document, *, deleted: bool) -> None:
        """Take one event of a Deployment."""
        metadata = document["metadata"]
        uid = metadata["uid"]
        key = WorkloadKey(metadata["namespace"], "deployment", metadata["name"])
        known = uid in self._deployments
        if deleted:
            if self._deployments.pop(uid, None) is not None and self._uids.get(key) == uid:
                del self._uids[key]
            if known:
                self._on_change(key)
            return
        view = deployment_view(document, self._defaults)
        # One that never opted in is not kept: most clusters have many of those.
        if not known and view.policy.mode is Mode.OFF and not view.problems:
            return
        if self._deployments.get(uid) == view:
            return
        self._deployments[uid] = view
        self._uids[key] = uid
        self._on_change(key)

    def take_replica_set(self, document: Document, *, deleted: bool) -> None:
        """Take one event of a ReplicaSet."""
        metadata = document["metadata"]
        uid = metadata["uid"]
        owner = controller_of(document, "Deployment")
        if owner is None:
            return
        if deleted:
            self._sets.pop(uid, None)
            self._sets_of.get(owner["uid"], set()).discard(uid)
        else:
            new = _Set(replica_set_view(document), owner["uid"], metadata["namespace"])
            if self._sets.get(uid) == new:
                return
            self._sets[uid] = new
            self._sets_of.setdefault(owner["uid"], set()).add(uid)
        deployment = self._deployments.get(owner["uid"])
        if deployment is not None:
            self._on_change(deployment.key)

    def _with_sets(self, deployment: WorkloadView) -> WorkloadView:
        sets = [self._sets[uid].view for uid in self._sets_of.get(deployment.uid, ()) if uid in self._sets]
        return replace(deployment, sets=tuple(sorted(sets, key=lambda one: one.name)))


def deployment_view(document: Document, defaults: Policy) -> WorkloadView:
    """Project a Deployment; `sets` is empty."""
    metadata, spec, status = document["metadata"], document["spec"], document.get("status", {})
    annotations = metadata.get("annotations", {})
    replicas = spec.get("replicas", 1)
    rolling = spec.get("strategy", {}).get("rollingUpdate", {})
    surge, unavailable = rolling_step(rolling.get("maxSurge", "25%"), rolling.get("maxUnavailable", "25%"), replicas)
    if spec.get("strategy", {}).get("type") == "Recreate":
        surge, unavailable = 0, replicas
    policy, problems = read_policy(annotations, defaults)
    return WorkloadView(
        key=WorkloadKey(metadata["namespace"], "deployment", metadata["name"]),
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        replicas=replicas,
        max_surge=surge,
        max_unavailable=unavailable,
        paused=spec.get("paused", False),
        terminating="deletionTimestamp" in metadata,
        revision=annotations.get(names.REVISION, ""),
        policy=policy,
        problems=problems,
    )


def replica_set_view(document: Document) -> ReplicaSetView:
    """Project a ReplicaSet."""
    metadata = document["metadata"]
    annotations = metadata.get("annotations", {})
    return ReplicaSetView(
        name=metadata["name"],
        uid=metadata["uid"],
        replicas=document["spec"].get("replicas", 1),
        observed_replicas=document.get("status", {}).get("replicas", 0),
        revision=annotations.get(names.REVISION, ""),
        rolled_back=bool(annotations.get(names.REVISION_HISTORY)),
    )


def controller_of(document: Document, kind: str) -> Mapping[str, Any] | None:
    """Return the owner reference of the controller, where it is of this kind."""
    for owner in document["metadata"].get("ownerReferences", []):
        if owner.get("controller") and owner["kind"] == kind:
            reference: Mapping[str, Any] = owner
            return reference
    return None


def rolling_step(surge: int | str, unavailable: int | str, replicas: int) -> tuple[int, int]:
    """Resolve maxSurge (rounded up) and maxUnavailable (rounded down) to pods, as the Deployment controller does.

    Source: ResolveFenceposts in Kubernetes' deployment utilities: both zero becomes one unavailable.
    """
    more = _scaled(surge, replicas, round_up=True)
    fewer = _scaled(unavailable, replicas, round_up=False)
    return (more, fewer) if more or fewer else (0, 1)


def _scaled(value: int | str, replicas: int, *, round_up: bool) -> int:
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"(\d+)%", value)
    if found is None:
        return 0
    share = int(found[1]) * replicas
    return -(-share // 100) if round_up else share // 100
