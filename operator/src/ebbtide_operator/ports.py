"""What the operator needs from the outside, as protocols; the contracts are in the docstrings.

Adapters live in `cluster/` and `store/`. Tests use the memory adapters, which pass the same contract suites.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ebbtide.etcd.messages import Changed, Compare, Delete, KeyValue, Put, Removed, Resync
from ebbtide.protocol import DrainRecord, Order, Phase
from ebbtide_operator.core.model import PodView, ReportView, WorkloadKey, WorkloadView

__all__ = [
    "Changed",
    "Cluster",
    "Compare",
    "Conflict",
    "Delete",
    "Deposed",
    "DrainState",
    "KeyValue",
    "LeaseEnded",
    "PodIdentity",
    "Put",
    "Refused",
    "Removed",
    "Resync",
    "Store",
    "StoreStatus",
    "StoreUnavailable",
]


class StoreUnavailable(ConnectionError):
    """The store cannot be reached or cannot answer; the write may have happened where `uncertain` is true."""

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class LeaseEnded(Exception):
    """The lease that a key was to be bound to has expired or was revoked: grant a new one."""


class Deposed(Exception):
    """Another operator leads: the store refused a write that compared our epoch."""


class Conflict(Exception):
    """The object is not the one that was decided about: it changed its UID or is gone."""


class Refused(Exception):
    """The API server will not do it for us: no right to, or an admission webhook said no."""


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """The pod that a bound ServiceAccount token speaks for."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The version of the store (empty: it does not say), and the room that its database takes, in bytes."""

    version: str
    file: int
    in_use: int | None = None
    """The rest of the file is what compaction left behind."""
    quota: int | None = None
    """Where the file reaches it, the store refuses every write. None, here and above: it does not say."""
    full: bool = False
    """Whether it was reached: the store answers reads, and refuses writes until somebody makes room and says so."""


class Store(Protocol):
    """etcd as the operator uses it. Every call has a time limit of its own and raises StoreUnavailable."""

    async def get(self, key: str) -> KeyValue | None: ...

    async def range(self, prefix: str) -> tuple[tuple[KeyValue, ...], int]:
        """Return every key under a prefix, sorted, and the revision at which that was true."""

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> int | None:
        """Apply `then` in one step if every comparison holds; return the revision, or None where one did not.

        Raises:
            LeaseEnded: A put is bound to a lease that has ended; nothing was applied.
        """

    async def grant(self, ttl_s: int, *, lease: int = 0) -> int:
        """Return the id of a new lease; `lease` asks for that id, and the answer is 0 where it is in use."""

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease; False: it has expired."""

    async def keep_all_alive(self, leases: Collection[int]) -> frozenset[int]:
        """Renew many leases in one go; return those that have expired."""

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; an expired one is no error."""

    async def status(self) -> StoreStatus:
        """Return what the store says of itself; of several members one answers."""

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Sequence[Changed | Removed | Resync], None]:
        """Yield what happens under a prefix after a revision, without a gap, until closed.

        It reconnects by itself; each batch is one store response, so all events of one transaction come together.
        While the store is away it is silent: ask `healthy`.
        """

    @property
    def healthy(self) -> bool:
        """True where the watch is connected and the last call succeeded."""

    @property
    def cluster(self) -> int:
        """Id of the store that the watch told from: another one where it was emptied or replaced; 0: not known."""

    async def close(self) -> None: ...


class Cluster(Protocol):
    """Kubernetes as the operator writes to it. Raises Conflict where the object is another one or gone."""

    async def patch_pod(
        self,
        pod: PodView,
        *,
        annotations: Mapping[str, str | None] | None = None,
        labels: Mapping[str, str | None] | None = None,
    ) -> None:
        """Merge annotations and labels into the pod with this UID; None removes one."""

    async def delete_pod(self, pod: PodView) -> None:
        """Ask for the deletion of the pod with this UID, with its own grace period; one that is gone is no error.

        Raises:
            Refused: It was not accepted.
        """

    async def replica_set(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """Return one ReplicaSet as the API has it now, never from before the call; None: there is none."""

    async def unlabelled_pods(self, workload: WorkloadView) -> Sequence[PodView]:
        """Return the pods of the workload's ReplicaSets that have no managed label."""

    async def write_status(self, workload: WorkloadView, status: Mapping[str, object]) -> None:
        """Write the status of the workload's Drain object; create it, owned by the workload, where it is missing."""

    async def read_status(self, key: WorkloadKey) -> Mapping[str, object] | None:
        """Return the status of the workload's Drain object; None: there is no such object."""

    async def remove_status(self, key: WorkloadKey) -> None: ...

    async def post_event(self, workload: WorkloadView, reason: str, message: str, *, warning: bool) -> None: ...


class DrainState(Protocol):
    """The protocol's records, typed: reads come from a mirror of the store, writes are fenced by the epoch.

    Reads never wait and never fail; a record that cannot be read is as good as none. Writes raise Deposed where another
    operator leads, and StoreUnavailable.
    """

    @property
    def healthy(self) -> bool:
        """True while the mirror is complete, and the store answers and is not full."""

    @property
    def epoch(self) -> int:
        """Epoch of our leadership; 0 without."""

    def order(self, namespace: str, uid: str) -> Order | None: ...

    def orders(self, namespace: str) -> Mapping[str, Order]:
        """Return every order of a namespace by pod UID, also of pods that are gone."""

    def report(self, namespace: str, uid: str) -> ReportView | None: ...

    def requested(self, namespace: str) -> frozenset[str]:
        """Return the UIDs of pods whose deletion was asked for lately."""

    def phase(self, key: WorkloadKey) -> tuple[Phase, int, float] | None:
        """Return the phase record, its modification revision, and when this operator saw it (Unix seconds)."""

    def records(self, key: WorkloadKey) -> tuple[DrainRecord, ...]:
        """Return the last ends of drains, newest first, ten at most."""

    async def send_order(self, namespace: str, uid: str, order: Order) -> None: ...

    async def publish_phase(self, key: WorkloadKey, phase: Phase) -> None: ...

    async def write_record(self, key: WorkloadKey, record: DrainRecord) -> None: ...

    async def end(self, key: WorkloadKey, record: DrainRecord) -> None:
        """Write the record of a pod that is gone, and forget the pod, in one step."""

    async def forget(self, namespace: str, uid: str) -> None: ...

    async def remove_phase(self, key: WorkloadKey) -> None: ...
