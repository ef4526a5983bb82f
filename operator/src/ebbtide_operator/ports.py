"""What the operator needs from the outside, as protocols; the contracts are in the docstrings.

Adapters live in `cluster/` and `store/`. Tests use the memory adapters, which pass the same contract suites.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ebbtide.protocol import DrainRecord, Order, Phase
from ebbtide_operator.core.model import PodView, WorkloadKey, WorkloadView


class StoreUnavailable(ConnectionError):
    """The store cannot be reached or cannot answer; the write may have happened where `uncertain` is true."""

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


class Deposed(Exception):
    """Another operator leads: the store refused a write that compared our epoch."""


class Conflict(Exception):
    """The object is not the one that was decided about: it changed its UID or is gone."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as the store holds it; revisions are the store's own, `lease` is 0 without one."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction: `create_revision` or `mod_revision` of a key equals a number (0: no such key)."""

    key: str
    create_revision: int | None = None
    mod_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or with `prefix` every key that starts with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """A key was written, at `revision`."""

    key_value: KeyValue
    revision: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A key was deleted or its lease expired, at `revision`."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Resync:
    """History was lost to compaction: this is everything there is; forget what is not in it."""

    key_values: tuple[KeyValue, ...]
    revision: int


class Store(Protocol):
    """etcd as the operator uses it. Every call has a time limit of its own and raises StoreUnavailable."""

    async def get(self, key: str) -> KeyValue | None: ...

    async def range(self, prefix: str) -> tuple[tuple[KeyValue, ...], int]:
        """Return every key under a prefix, sorted, and the revision at which that was true."""

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> int | None:
        """Apply `then` in one step if every comparison holds; return the revision, or None where one did not."""

    async def grant(self, ttl_s: int) -> int:
        """Return the id of a new lease."""

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease; False: it has expired."""

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; an expired one is no error."""

    def watch(self, prefix: str, after: int) -> AsyncIterator[Sequence[Changed | Removed | Resync]]:
        """Yield what happens under a prefix after a revision, without a gap, until closed.

        It reconnects by itself; each batch is one store response, so all events of one transaction come together.
        While the store is away it is silent: ask `healthy`.
        """

    @property
    def healthy(self) -> bool:
        """True where the watch is connected and the last call succeeded."""

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

    async def unlabelled_pods(self, workload: WorkloadView) -> Sequence[PodView]:
        """Return the pods of the workload's ReplicaSets that have no managed label."""

    async def write_status(self, workload: WorkloadView, status: Mapping[str, object]) -> None:
        """Write the status of the workload's Drain object; create it, owned by the workload, where it is missing."""

    async def remove_status(self, key: WorkloadKey) -> None: ...

    async def post_event(self, workload: WorkloadView, reason: str, message: str, *, warning: bool) -> None: ...


class DrainState(Protocol):
    """The protocol's records, typed: reads come from a mirror of the store, writes are fenced by the epoch."""

    @property
    def healthy(self) -> bool: ...

    async def send_order(self, namespace: str, uid: str, order: Order) -> None: ...

    async def publish_phase(self, key: WorkloadKey, phase: Phase) -> None: ...

    async def write_record(self, key: WorkloadKey, record: DrainRecord) -> None: ...

    async def forget(self, namespace: str, uid: str) -> None: ...

    async def remove_phase(self, key: WorkloadKey) -> None: ...
