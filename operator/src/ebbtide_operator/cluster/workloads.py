"""A cache of Deployments and their ReplicaSets, fed by the handlers, read by everyone else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ebbtide_operator.core import names
from ebbtide_operator.core.annotations import read_policy
from ebbtide_operator.core.model import Mode, Policy, Problem, ReplicaSetView, WorkloadKey, WorkloadView

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Listing:
    """A complete list as the API gave it, and the resourceVersion at which it was true."""

    documents: Sequence[Document]
    version: int


@dataclass(frozen=True, slots=True)
class _Set:
    """A ReplicaSet, the Deployment that controls it, and the policy that it was given as a copy."""

    view: ReplicaSetView
    key: WorkloadKey
    owner_uid: str
    policy: Policy
    problems: tuple[Problem, ...]


class Workloads:
    """Every Deployment with its ReplicaSets.

    Args:
        defaults: What a policy is where its annotations say nothing.
        on_change: Called with the key of a workload that changed and that Ebbtide has, or had, to do with.
    """

    def __init__(self, defaults: Policy, on_change: Callable[[WorkloadKey], None]) -> None:
        self._defaults = defaults
        self._on_change = on_change
        self._deployments: dict[str, WorkloadView] = {}
        self._uids: dict[WorkloadKey, str] = {}
        self._sets: dict[str, _Set] = {}
        self._sets_of: dict[str, set[str]] = {}
        self._versions: dict[str, int] = {}
        self._gone: set[str] | None = None
        self._concerned: set[WorkloadKey] = set()

    def keys(self) -> list[WorkloadKey]:
        """Return the workloads that opted in, or did."""
        return [key for key in self._concerned if key in self._uids]

    def get(self, key: WorkloadKey) -> WorkloadView | None:
        """Return a Deployment with its ReplicaSets; None: there is none of that name."""
        uid = self._uids.get(key)
        return None if uid is None else self._with_sets(self._deployments[uid])

    def owning(self, replica_set_uid: str) -> WorkloadView | None:
        """Return the workload that a ReplicaSet belongs to; None: not known here."""
        found = self._sets.get(replica_set_uid)
        deployment = None if found is None else self._deployments.get(found.owner_uid)
        return None if deployment is None else self._with_sets(deployment)

    def for_new_pod(self, replica_set_uid: str) -> WorkloadView | None:
        """Return the workload of a pod that is being made, by its ReplicaSet; None: not known here."""
        found = self._sets.get(replica_set_uid)
        return None if found is None else self._for_new_pod(found)

    def for_new_pod_of(self, replica_set: Document) -> WorkloadView | None:
        """Return the workload of a pod that is being made, by its ReplicaSet; None: no Deployment controls that."""
        found = self._set_of(replica_set)
        return None if found is None else self._for_new_pod(found)

    def concern(self, key: WorkloadKey) -> None:
        """Take a workload as one that had to do with Ebbtide: something of ours is left of it."""
        if key not in self._concerned:
            self._concerned.add(key)
            self._on_change(key)

    def take_deployment(self, document: Document, *, deleted: bool) -> None:
        """Take one event of a Deployment; an older state than the last one is ignored."""
        uid = document["metadata"]["uid"]
        if deleted:
            self._remove_deployment(uid)
            return
        if not self._is_news(document):
            return
        view = deployment_view(document, self._defaults)
        if self._deployments.get(uid) == view:
            return
        self._deployments[uid] = view
        self._uids[view.key] = uid
        if view.policy.mode is not Mode.OFF or view.problems:
            self._concerned.add(view.key)
        self._tell(view.key)

    def take_replica_set(self, document: Document, *, deleted: bool) -> None:
        """Take one event of a ReplicaSet; an older state than the last one is ignored."""
        uid = document["metadata"]["uid"]
        if deleted:
            self._remove_set(uid)
            return
        new, old = self._set_of(document), self._sets.get(uid)
        if (new is None and old is None) or not self._is_news(document) or new == old:
            return
        if old is not None and (new is None or new.owner_uid != old.owner_uid):
            # Its Deployment gave it up: deleted without its dependents, or the labels do not match any more.
            self._take_out(uid)
        if new is None:
            return
        self._sets[uid] = new
        self._sets_of.setdefault(new.owner_uid, set()).add(uid)
        self._tell(new.key)

    def take_read(self, uid: str, document: Document | None) -> None:
        """Take a ReplicaSet that was read by its name; where another one has the name, or none, this one is gone."""
        if document is None or document["metadata"]["uid"] != uid:
            self._remove_set(uid)
        elif uid in self._sets:
            # Not one whose deletion was seen while it was being read.
            self.take_replica_set(document, deleted=False)

    def expect_lists(self) -> None:
        """Remember deletions from now on: lists that are being read may still have what they delete."""
        self._gone = set()

    def take_lists(self, deployments: Listing, replica_sets: Listing) -> None:
        """Take complete lists that were read since `expect_lists`; forget what was deleted unseen."""
        for documents, take in (
            (deployments.documents, self.take_deployment),
            (replica_sets.documents, self.take_replica_set),
        ):
            for document in documents:
                if self._gone is None or document["metadata"]["uid"] not in self._gone:
                    take(document, deleted=False)
        self._gone = None
        for listing, known, remove in (
            (deployments, self._deployments, self._remove_deployment),
            (replica_sets, self._sets, self._remove_set),
        ):
            listed = {document["metadata"]["uid"] for document in listing.documents}
            for uid in known.keys() - listed:
                # What is newer than the list was made after it was read.
                if self._versions.get(uid, 0) <= listing.version:
                    remove(uid)

    def _for_new_pod(self, found: _Set) -> WorkloadView:
        deployment = self._deployments.get(found.owner_uid)
        copy = WorkloadView(
            key=found.key,
            uid=found.owner_uid,
            generation=0,
            observed_generation=0,
            replicas=found.view.replicas,
            max_surge=0,
            max_unavailable=0,
            revision=found.view.revision,
            policy=found.policy,
            problems=found.problems,
        )
        if deployment is None:
            return copy
        # Two watches: the event of the Deployment that opted in may come after the one of the ReplicaSet that it made.
        # Later on the copy counts for nothing: an annotation that is taken off the Deployment stays on its ReplicaSet.
        behind = _number(found.view.revision) > _number(deployment.revision)
        return copy if behind and deployment.policy.mode is Mode.OFF else deployment

    def _set_of(self, document: Document) -> _Set | None:
        owner = controller_of(document, "Deployment")
        if owner is None:
            return None
        metadata = document["metadata"]
        policy, problems = _policy(metadata.get("annotations", {}), self._defaults)
        key = WorkloadKey(metadata["namespace"], "deployment", owner["name"])
        return _Set(replica_set_view(document), key, owner["uid"], policy, problems)

    def _is_news(self, document: Document) -> bool:
        uid, version = document["metadata"]["uid"], int(document["metadata"].get("resourceVersion", 0))
        if version < self._versions.get(uid, 0):
            return False
        self._versions[uid] = version
        return True

    def _remove_deployment(self, uid: str) -> None:
        self._note_gone(uid)
        view = self._deployments.pop(uid, None)
        if view is None:
            return
        # A Deployment of the same name may have come before this one's end was seen.
        if self._uids.get(view.key) == uid:
            del self._uids[view.key]
        self._tell(view.key)
        if view.key not in self._uids:
            self._concerned.discard(view.key)

    def _remove_set(self, uid: str) -> None:
        self._note_gone(uid)
        self._take_out(uid)

    def _take_out(self, uid: str) -> None:
        old = self._sets.pop(uid, None)
        if old is None:
            return
        siblings = self._sets_of[old.owner_uid]
        siblings.discard(uid)
        if not siblings:
            del self._sets_of[old.owner_uid]
        self._tell(old.key)

    def _note_gone(self, uid: str) -> None:
        self._versions.pop(uid, None)
        if self._gone is not None:
            self._gone.add(uid)

    def _tell(self, key: WorkloadKey) -> None:
        if key in self._concerned:
            self._on_change(key)

    def _with_sets(self, deployment: WorkloadView) -> WorkloadView:
        sets = [self._sets[uid].view for uid in self._sets_of.get(deployment.uid, ())]
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
    policy, problems = _policy(annotations, defaults)
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


def _policy(annotations: Mapping[str, str], defaults: Policy) -> tuple[Policy, tuple[Problem, ...]]:
    # Most of a cluster has nothing to do with us: one policy for all of it, and no parsing.
    if not any(name.startswith(f"{names.DOMAIN}/") for name in annotations):
        return defaults, ()
    return read_policy(annotations, defaults)


def _number(revision: str) -> int:
    return int(revision) if revision.isdigit() else 0
