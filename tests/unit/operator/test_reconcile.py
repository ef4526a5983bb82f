"""Passes over one workload that go wrong somewhere: what is told late, and what must not be late."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from ebbtide.protocol import Desired, Outcome, PodState
from ebbtide_operator.apply import Applier
from ebbtide_operator.cluster.api import ApiError
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core.marks import read_marks
from ebbtide_operator.core.model import PodView, Policy, WorkloadKey, WorkloadView
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.reconcile import LOOK_AGAIN_S, MISSING_FOR_S, ORPHANED_FOR_S, TELL_AGAIN_S, Reconciler
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
        pass

    async def patch_pod(self, pod: PodView, *, annotations: Any = None, labels: Any = None) -> None:
        self._check("patch_pod")
        marks = read_marks(annotations)
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


@pytest.fixture
async def scene(store: Any, clock: Clock) -> AsyncIterator[Scene]:
    async with running(store, clock) as state:
        await state.lead("me")
        found = Scene(store, state, clock)
        await found.begin()
        yield found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.mark.parametrize("call", ["write_status", "read_status"])
async def test_a_status_that_is_refused_delays_no_deadline(scene: Scene, call: str) -> None:
    scene.cluster.refusing = {call}
    for _ in range(12):
        await scene.look()
    assert scene.failures == [FORBIDDEN] * 12
    await scene.drain()
    deadline_at = scene.pods.by_uid["u1"].deadline_at
    assert deadline_at is not None
    scene.clock.now = deadline_at - 2
    again_s = await scene.look()
    assert again_s is not None
    assert 2 <= again_s < 3
    scene.clock.now += again_s
    await scene.look()
    assert scene.cluster.deleted == ["u1"]


async def test_what_is_refused_to_a_pod_delays_no_deadline(scene: Scene) -> None:
    await scene.drain()
    deadline_at = scene.pods.by_uid["u1"].deadline_at
    assert deadline_at is not None
    await scene.add("u2", label="")
    scene.cluster.refusing = {"patch_pod"}
    scene.clock.now = deadline_at - 2
    with pytest.raises(ApiError):
        await scene.look()
    assert 2 <= min(scene.wakes) < 3


async def ask_for_another_than_drains(scene: Scene) -> None:
    """Let one of two pods be drained, and the controller ask for the other."""
    await scene.add("u2")
    scene.size(version=2, replicas=1)
    async with asyncio.timeout(10):
        while not (orders := scene.state.orders("shop")):
            await scene.look()
            scene.clock.now += 1
    (other,) = {"u1", "u2"} - orders.keys()
    await scene.state.post_request("shop", other, "the controller")
    await seen(scene.state, scene.store)
    scene.cluster.sizes_read = 0


async def test_drains_that_go_on_cost_no_read_in_every_pass_where_the_controller_asks_for_another_pod(
    scene: Scene,
) -> None:
    await ask_for_another_than_drains(scene)
    for _ in range(50):
        await scene.look()
        scene.clock.now += 0.01
    assert scene.cluster.sizes_read == 1


async def test_a_controller_is_heard_a_second_after_the_last_time(scene: Scene) -> None:
    await ask_for_another_than_drains(scene)
    await scene.look()
    scene.cluster.sets["orders-1"] = a_replica_set(version=3, replicas=0)
    again_s = await scene.look()
    assert again_s is not None
    scene.clock.now += again_s
    await scene.look()
    workload = scene.workloads.get(ORDERS)
    assert workload is not None
    assert [view.replicas for view in workload.sets] == [0]
    assert again_s < 1.1


async def test_a_read_that_fails_for_a_controller_alone_is_not_repeated_in_the_next_pass(scene: Scene) -> None:
    await ask_for_another_than_drains(scene)
    scene.cluster.refusing = {"replica_set"}
    with pytest.raises(ApiError):
        await scene.look()
    await scene.look()
    assert scene.cluster.sizes_read == 1


async def test_a_size_that_cannot_be_read_delays_no_deadline(scene: Scene) -> None:
    await scene.drain()
    deadline_at = scene.pods.by_uid["u1"].deadline_at
    assert deadline_at is not None
    scene.pods.by_uid["u2"] = PodView("shop", "orders-1-u2", "u2", "uid-orders-1", 1.0, label="true", scheduled=False)
    scene.cluster.refusing = {"replica_set"}
    scene.clock.now = deadline_at - 2
    with pytest.raises(ApiError):
        await scene.look()
    assert scene.cluster.deleted == []
    assert 2 <= min(scene.wakes) < 3


async def test_pods_that_cannot_be_looked_for_delay_no_deadline_for_long(scene: Scene) -> None:
    await scene.drain()
    document = a_replica_set(version=3, replicas=0) | {"status": {"replicas": 5}}
    scene.workloads.take_replica_set(document, deleted=False)
    scene.cluster.refusing = {"unlabelled_pods"}
    assert await scene.look() == MISSING_FOR_S
    scene.clock.now += MISSING_FOR_S
    with pytest.raises(ApiError):
        await scene.look()
    assert scene.wakes == [MISSING_FOR_S]


async def test_a_status_that_was_refused_is_written_later(scene: Scene) -> None:
    scene.cluster.refusing = {"write_status"}
    pauses = [await scene.look() for _ in range(8)]
    assert pauses[:3] == [TELL_AGAIN_S, 2 * TELL_AGAIN_S, 4 * TELL_AGAIN_S]
    assert pauses[-1] == LOOK_AGAIN_S
    scene.cluster.refusing.clear()
    assert await scene.look() == LOOK_AGAIN_S
    assert scene.cluster.status is not None
    assert len(scene.failures) == 8


async def test_a_status_that_could_not_be_read_is_not_written_over(scene: Scene) -> None:
    await scene.look()
    before = scene.cluster.status
    scene.reconciler.begin()
    scene.clock.now += 3600
    scene.cluster.refusing = {"read_status"}
    assert await scene.look() == TELL_AGAIN_S
    scene.cluster.refusing.clear()
    await scene.look()
    assert scene.cluster.status is before


async def test_a_drain_ends_with_its_pod_where_the_workload_is_gone(scene: Scene) -> None:
    await scene.drain()
    began_at = scene.clock.now
    scene.remove()
    scene.clock.now += 5
    assert await scene.look() == LOOK_AGAIN_S
    assert scene.state.order("shop", "u1") is not None
    assert scene.state.ordered() == {ORDERS}
    await report(
        scene.store,
        "u1",
        a_report(sequence=9, state=PodState.EXITING, generation=1, active=2, forced=True).encode(),
    )
    await seen(scene.state, scene.store)
    del scene.pods.by_uid["u1"]
    scene.clock.now += 5
    await scene.look()
    (record,) = scene.state.records(ORDERS)
    assert (record.uid, record.outcome, record.active_at_end) == ("u1", Outcome.ABANDONED, 2)
    assert record.ended_at - began_at == 10
    assert not scene.state.orders("shop")
    assert scene.state.report("shop", "u1") is None
    assert await scene.look() is None
    assert scene.state.ordered() == frozenset()


async def test_a_pod_that_is_left_without_its_workload_serves_again(scene: Scene) -> None:
    await scene.drain()
    scene.remove()
    await scene.look()
    assert scene.state.order("shop", "u1").desired is Desired.DRAIN
    scene.clock.now += ORPHANED_FOR_S
    await scene.look()
    assert scene.state.order("shop", "u1").desired is Desired.SERVE
    assert scene.pods.by_uid["u1"].deadline_at is None


async def test_a_workload_that_came_back_goes_on_with_its_drains(scene: Scene) -> None:
    await scene.drain()
    scene.remove()
    await scene.look()
    scene.clock.now += ORPHANED_FOR_S - 1
    scene.workloads.take_deployment(a_deployment(9, annotations=ANNOTATIONS, replicas=1), deleted=False)
    scene.workloads.take_replica_set(a_replica_set(version=9, replicas=0), deleted=False)
    await scene.look()
    assert scene.state.order("shop", "u1").desired is Desired.DRAIN
