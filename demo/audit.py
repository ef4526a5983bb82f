"""What was written to the API server, read from its audit log.

The log is audit.k8s.io/v1 at level Metadata, one JSON object a line.

Pure but for `AuditTail`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

WRITE_VERBS = frozenset({"create", "update", "patch", "delete"})
COUNTED_RESOURCES = frozenset({"pods", "deployments", "replicasets", "drains"})


@dataclass(frozen=True, slots=True)
class Write:
    """One write request that was answered."""

    at: float
    """When it was received, Unix time in seconds."""
    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    """Empty where the server makes the name, as for a new pod."""
    code: int
    answered_at: float = 0.0
    """When its answer was sent, Unix time in seconds."""

    @property
    def accepted(self) -> bool:
        return 200 <= self.code < 300

    @property
    def deletes_pod(self) -> bool:
        return self.accepted and self.verb == "delete" and self.resource == "pods" and not self.subresource

    @classmethod
    def from_json(cls, document: Any) -> Self | None:
        """Read one line of the log; None: it is not the end of a write to an object."""
        if document.get("stage") != "ResponseComplete" or document.get("verb") not in WRITE_VERBS:
            return None
        target = document.get("objectRef", {})
        return cls(
            at=datetime.fromisoformat(document["requestReceivedTimestamp"]).timestamp(),
            user=document["user"]["username"],
            verb=document["verb"],
            resource=target.get("resource", ""),
            subresource=target.get("subresource", ""),
            namespace=target.get("namespace", ""),
            name=target.get("name", ""),
            code=document.get("responseStatus", {}).get("code", 0),
            answered_at=datetime.fromisoformat(document["stageTimestamp"]).timestamp(),
        )


@dataclass(frozen=True, slots=True)
class WriteCount:
    """Writes that one Deployment caused: to itself, its ReplicaSets, its pods and its Drain."""

    accepted: int = 0
    by_ebbtide: int = 0
    """Of the accepted ones, those of Ebbtide's operator."""
    to_pods_by_ebbtide: int = 0
    """Of those, the ones to pods; nearly all of the rest are the Drain's status, about one a second."""
    held: int = 0
    """Pod deletions that were asked for and denied: they cost a request, and write nothing."""


def parse(lines: Iterable[str]) -> Iterator[Write]:
    """Yield the writes in a log.

    Raises:
        ValueError: A line is not JSON.
    """
    for line in lines:
        write = Write.from_json(json.loads(line))
        if write is not None:
            yield write


def belongs_to(name: str, deployment: str) -> bool:
    """Say whether an object is the Deployment, its ReplicaSet, its pod or its Drain, by name.

    Deployments of the demo have names of which none is the beginning of another.
    """
    return name == deployment or name.startswith(f"{deployment}-") or name == f"deployment-{deployment}"


def count_writes(
    writes: Iterable[Write], namespace: str, deployment: str, created_pods: int, operator: str
) -> WriteCount:
    """Count what one Deployment caused.

    Args:
        writes: Of the time in question.
        namespace: Of the Deployment.
        deployment: Its name.
        created_pods: Pods that were created meanwhile, as the watch saw: their names are not in the log.
        operator: Namespace of the operator: writes of its ServiceAccounts are Ebbtide's.
    """
    accepted, by_ebbtide, to_pods, held = created_pods, 0, 0, 0
    for write in writes:
        if write.namespace != namespace or write.resource not in COUNTED_RESOURCES:
            continue
        if not belongs_to(write.name, deployment):
            continue
        if write.accepted:
            accepted += 1
            ours = write.user.startswith(f"system:serviceaccount:{operator}:")
            by_ebbtide += ours
            to_pods += ours and write.resource == "pods"
        elif write.verb == "delete" and write.resource == "pods" and write.code == 429:
            held += 1
    return WriteCount(accepted, by_ebbtide, to_pods, held)


def pod_deletions(writes: Iterable[Write], namespace: str) -> dict[str, float]:
    """Return when the first deletion of each pod that was accepted was asked for; the kubelet's own comes later."""
    return _earliest((write.name, write.at) for write in writes if _deletes(write, namespace))


def accepted_deletions(writes: Iterable[Write], namespace: str) -> dict[str, float]:
    """Return when a deletion of each pod was first answered as accepted.

    Which need not be the one that was asked for first: where the operator and a controller ask at the same moment, the
    controller's request is held up by the webhook until the other one is through.
    """
    return _earliest((write.name, write.answered_at) for write in writes if _deletes(write, namespace))


def _deletes(write: Write, namespace: str) -> bool:
    return write.deletes_pod and write.namespace == namespace


def _earliest(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    earliest: dict[str, float] = {}
    for name, at in times:
        earliest[name] = min(at, earliest.get(name, at))
    return earliest


class AuditTail:
    """Read what was added to an audit log since the last time.

    Args:
        path: The log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size

    def read(self) -> list[Write]:
        """Return the writes since the last call; half a line at the end is left for the next."""
        if self._path.stat().st_size < self._offset:
            # The API server began a new file.
            self._offset = 0
        with self._path.open("rb") as log:
            log.seek(self._offset)
            data = log.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(parse(whole.decode().splitlines()))
