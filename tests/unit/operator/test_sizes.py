"""A pass over one workload whose ReplicaSets are seen later than its pods: the API is a fake one, the rest is real."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ebbtide.protocol import Desired, Order
from ebbtide_operator.apply import Applier
from ebbtide_operator.cluster.api import Api, ApiError
from ebbtide_operator.cluster.client import KubernetesCluster
from ebbtide_operator.cluster.informer import PodInformer
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core.model import Policy, WorkloadKey
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import Conflict
from ebbtide_operator.reconcile import Reconciler
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.memory import MemoryStore
from tests.unit.operator.fake_api import FakeApi, a_pod, eventually, pod_path, serving
from tests.unit.operator.test_workloads import a_deployment, a_replica_set

ORDERS = WorkloadKey("shop", "deployment", "orders")
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/orders"
REPLICA_SET = "/apis/apps/v1/namespaces/shop/replicasets/orders-1"
FLOORED = {"ebbtide.dev/floor": "container app"}


def a_pod_of_orders(name: str, marks: dict[str, str] = FLOORED, *, born: bool = True) -> dict[str, Any]:
    pod = a_pod(name, owner="uid-orders-1", annotations=FLOORED | marks)
    if not born:
        pod["spec"] = {"containers": [{"name": "app"}]}
        pod["status"] = {"phase": "Pending"}
    return pod


class Scene:
    """Three pods of `orders-1`. Its Deployment and ReplicaSet are told to the cache by hand, so as late as need be."""

    def __init__(self, fake: FakeApi, api: Api) -> None:
        self.fake = fake
        self.workloads = Workloads(Policy(), lambda _key: None)
        self.pods = PodInformer(api, lambda _pod: None)
        self.state = MirroredDrainState(MemoryStore())
        self.epoch = 0
        cluster, metrics = KubernetesCluster(api, self.pods.observe), Metrics()
        applier = Applier(cluster, self.state, metrics, time.time, may_delete=lambda: True)
        self._reconciler = Reconciler(self.workloads, self.pods, self.state, cluster, applier, metrics, clock=time.time)

    async def reconcile(self, *, times: int = 3) -> None:
        for _ in range(times):
            await self._reconciler.reconcile(ORDERS)

    async def order(self, name: str, desired: Desired = Desired.DRAIN, **fields: Any) -> None:
        order = Order(desired=desired, generation=1, epoch=self.epoch, pod=name, workload="deployment/orders", **fields)
        await self.state.send_order("shop", f"uid-{name}", order)
        await eventually(lambda: self.state.order("shop", f"uid-{name}") == order)

    def ordered(self) -> dict[str, Desired]:
        return {uid.removeprefix("uid-"): one.desired for uid, one in self.state.orders("shop").items()}

    def deleted(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path in self.fake.requests if method == "DELETE"]

    def sizes(self) -> list[int]:
        workload = self.workloads.get(ORDERS)
        return [] if workload is None else [one.replicas for one in workload.sets]

    def reads(self) -> int:
        return self.fake.requests.count(("GET", REPLICA_SET))


@asynccontextmanager
async def a_scene(*new: dict[str, Any], replicas: int) -> AsyncIterator[Scene]:
    """Start with three pods, wanted and seen; `new` ones are made or changed, and another number is wanted unseen."""
    fake = FakeApi()
    fake.put(DEPLOYMENT, a_deployment(replicas=3))
    fake.put(REPLICA_SET, a_replica_set(replicas=3))
    for name in ("a", "b", "c"):
        fake.put(pod_path(name), a_pod_of_orders(name))
    async with serving(fake) as api:
        scene = Scene(fake, api)
        scene.workloads.take_deployment(fake.objects[DEPLOYMENT], deleted=False)
        scene.workloads.take_replica_set(fake.objects[REPLICA_SET], deleted=False)
        fake.put(DEPLOYMENT, a_deployment(replicas=replicas))
        fake.put(REPLICA_SET, a_replica_set(replicas=replicas))
        for pod in new:
            fake.put(pod_path(pod["metadata"]["name"]), pod)
        tasks = [asyncio.create_task(work) for work in (scene.state.run(), scene.pods.run())]
        try:
            await scene.pods.synced.wait()
            await scene.state.synced()
            tasks.append(asyncio.create_task(scene.state.hold_leadership("me")))
            await eventually(lambda: scene.state.epoch)
            scene.epoch = scene.state.epoch
            yield scene
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("born", [False, True])
async def test_new_pods_of_a_scale_up_stay_though_its_size_was_not_seen(born: bool) -> None:
    async with a_scene(*(a_pod_of_orders(name, born=born) for name in "def"), replicas=6) as scene:
        await scene.reconcile()
        assert (scene.deleted(), scene.ordered()) == ([], {})
        assert scene.sizes() == [6], "what was read is known from now on"


async def test_a_drained_pod_serves_again_where_a_scale_up_was_not_seen() -> None:
    async with a_scene(replicas=3) as scene:
        scene.fake.put(REPLICA_SET, a_replica_set(replicas=2))
        scene.workloads.take_replica_set(scene.fake.objects[REPLICA_SET], deleted=False)
        await scene.order("a", drain_timeout_s=0.001, issued_at=time.time() - 60)
        scene.fake.put(REPLICA_SET, a_replica_set(replicas=3))
        await scene.reconcile(times=1)
        assert (scene.deleted(), scene.ordered()) == ([], {"a": Desired.SERVE})


async def test_pods_that_are_too_many_go_in_the_pass_that_reads_how_many() -> None:
    async with a_scene(*(a_pod_of_orders(name, born=False) for name in "de"), replicas=3) as scene:
        await scene.reconcile(times=1)
        assert sorted(scene.deleted()) == ["d", "e"]
        assert scene.reads() == 1


async def test_a_controller_that_asks_for_a_pod_is_heard_though_its_size_was_not_seen() -> None:
    async with a_scene(replicas=2) as scene:
        await scene.state.post_request("shop", "uid-a", "the controller")
        await eventually(lambda: scene.state.requested("shop"))
        await scene.reconcile(times=1)
        assert scene.sizes() == [2]
        await eventually(lambda: scene.state.phase(ORDERS))
        await scene.reconcile(times=1)
        await eventually(lambda: list(scene.ordered().values()) == [Desired.DRAIN])


async def test_a_workload_with_the_pods_that_it_wants_costs_no_read() -> None:
    async with a_scene(replicas=3) as scene:
        await scene.reconcile()
        assert scene.reads() == 0


async def test_nobody_goes_while_the_size_cannot_be_read_and_the_rest_is_done() -> None:
    marks = {"ebbtide.dev/draining-since": "2026-11-24T12:00:00Z", "ebbtide.dev/original-deletion-cost": ""}
    pods = (a_pod_of_orders("a", marks), a_pod_of_orders("d", born=False))
    async with a_scene(*pods, replicas=3) as scene:
        await scene.order("a", Desired.SERVE)
        scene.fake.refuse = lambda _method, path: 503 if path == REPLICA_SET else None
        with pytest.raises(ApiError):
            await scene.reconcile(times=1)
        assert scene.deleted() == []
        left = scene.fake.objects[pod_path("a")]["metadata"]["annotations"]
        assert left == FLOORED, "what a crash left on a pod that stays is taken off all the same"


@pytest.mark.parametrize("end", ["deleted", "made anew", "given up"])
async def test_a_replica_set_that_is_not_the_workloads_any_more_loses_no_pod(end: str) -> None:
    async with a_scene(a_pod_of_orders("d", born=False), replicas=3) as scene:
        document = scene.fake.objects[REPLICA_SET]
        if end == "deleted":
            scene.fake.remove(REPLICA_SET)
        elif end == "made anew":
            scene.fake.put(REPLICA_SET, document | {"metadata": document["metadata"] | {"uid": "another"}})
        else:
            scene.fake.put(REPLICA_SET, document | {"metadata": document["metadata"] | {"ownerReferences": []}})
        with pytest.raises(Conflict):
            await scene.reconcile(times=1)
        await scene.reconcile(times=1)
        assert scene.deleted() == []
        assert scene.sizes() == []
