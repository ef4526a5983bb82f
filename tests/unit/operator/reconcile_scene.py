"""Passes over one workload by a real reconciler and store, over a Kubernetes that refuses what it is told to."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ebbtide_operator.apply import Applier
from ebbtide_operator.cluster.api import ApiError
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core.marks import read_marks
from ebbtide_operator.core.model import PodView, Policy, WorkloadKey, WorkloadView
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.reconcile import Reconciler
from ebbtide_operator.store.memory import MemoryStore
from tests.unit.operator.test_workloads import ORDERS, a_deployment, a_replica_set
from tests.unit.store.stand import Clock, a_report, report, running, seen

ANNOTATIONS = {
    "ebbtide.dev/drain": "managed",
    "ebbtide.dev/quiesce": "5s",
    "ebbtide.dev/drain-timeout": "5m",
    "ebbtide.dev/cancel-grace": "30s",
}
FORBIDDEN = ApiError(403, "Forbidden", "denied by a policy")


class Pods:
    """The informer's cache."""

    def __init__(self) -> None:
        self.by_uid: dict[str, PodView] = {}

    def of(self, owner: str) -> list[PodView]:
        return [pod for pod in self.by_uid.values() if pod.owner_uid == owner]

    def get(self, uid: str) -> PodView | None:
        return self.by_uid.get(uid)


class Cluster:
    """Kubernetes that refuses the calls it is told to, by their name."""

    def __init__(self, pods: Pods) -> None:
        self.pods = pods
        self.refusing: set[str] = set()
        self.deleted: list[str] = []
        self.sizes_read = 0
        self.events: list[str] = []
        self.status: Mapping[str, object] | None = None
        self.sets: dict[str, dict[str, Any]] = {}

    def _check(self, call: str) -> None:
        if call in self.refusing:
            raise FORBIDDEN

    async def replica_set(self, namespace: str, name: str) -> dict[str, Any] | None:
        self.sizes_read += 1
        self._check("replica_set")
        return self.sets.get(name)

    async def unlabelled_pods(self, workload: WorkloadView) -> tuple[PodView, ...]:
        self._check("unlabelled_pods")
        return ()

    async def read_status(self, key: WorkloadKey) -> Mapping[str, object] | None:
        self._check("read_status")
        return self.status

    async def write_status(self, workload: WorkloadView, status: Mapping[str, object]) -> None:
        self._check("write_status")
        self.status = status

    async def post_event(self, workload: WorkloadView, reason: str, message: str, *, warning: bool) -> None:
        self._check("post_event")
        self.events.append(reason)

    async def patch_pod(self, pod: PodView, *, annotations: Any = None, labels: Any = None) -> None:
        self._check("patch_pod")
        marks = read_marks(annotations or {})
        self.pods.by_uid[pod.uid] = replace(pod, draining_since=marks.draining_since, deadline_at=marks.deadline_at)

    async def delete_pod(self, pod: PodView) -> None:
        self._check("delete_pod")
        self.deleted.append(pod.uid)
        del self.pods.by_uid[pod.uid]


class Scene:
    """A Deployment with one pod that has three tasks, and a leader with a clock that the test moves."""

    def __init__(self, store: MemoryStore, state: Any, clock: Clock) -> None:
        self.store, self.state, self.clock = store, state, clock
        self.pods = Pods()
        self.cluster = Cluster(self.pods)
        self.workloads = Workloads(Policy(), lambda key: None)
        self.metrics = Metrics()
        self.wakes: list[float] = []
        self.failures: list[Exception] = []
        ports: Any = self.cluster
        applier = Applier(ports, state, self.metrics, clock, lambda: True)
        pods: Any = self.pods
        self.reconciler = Reconciler(
            self.workloads,
            pods,
            state,
            ports,
            applier,
            self.metrics,
            clock,
            wake=lambda _key, after_s: self.wakes.append(after_s),
            failed=lambda _key, error: self.failures.append(error),
        )

    async def begin(self) -> None:
        self.workloads.take_deployment(a_deployment(annotations=ANNOTATIONS, replicas=1), deleted=False)
        self.size(version=1, replicas=1)
        await self.add("u1")

    def size(self, version: int, replicas: int) -> None:
        document = a_replica_set(version=version, replicas=replicas)
        self.cluster.sets[document["metadata"]["name"]] = document
        self.workloads.take_replica_set(document, deleted=False)

    async def add(self, uid: str, label: str = "true") -> None:
        self.pods.by_uid[uid] = PodView("shop", f"orders-1-{uid}", uid, "uid-orders-1", 1.0, ready=True, label=label)
        await report(self.store, uid, a_report(active=3).encode(), lease=await self.store.grant(86400))
        await seen(self.state, self.store)

    def scale_down(self) -> None:
        self.size(version=2, replicas=0)

    def remove(self) -> None:
        """Delete the Deployment, and its ReplicaSet with it."""
        self.workloads.take_deployment(a_deployment(5), deleted=True)
        self.workloads.take_replica_set(a_replica_set(version=6), deleted=True)
        self.cluster.sets.clear()

    async def look(self) -> float | None:
        again_s = await self.reconciler.reconcile(ORDERS)
        await seen(self.state, self.store)
        return again_s

    async def drain(self) -> None:
        """Let every pod be ordered to drain, and marked."""
        self.scale_down()
        async with asyncio.timeout(10):
            while any(pod.deadline_at is None for pod in self.pods.by_uid.values()):
                await self.look()
                self.clock.now += 1


@asynccontextmanager
async def a_scene() -> AsyncIterator[Scene]:
    """Start with one pod, and lead."""
    store, clock = MemoryStore(), Clock()
    async with running(store, clock) as state:
        await state.lead("me")
        found = Scene(store, state, clock)
        await found.begin()
        yield found
