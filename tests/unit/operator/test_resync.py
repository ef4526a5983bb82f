import asyncio

import pytest

from ebbtide_operator.cluster.api import ApiError
from ebbtide_operator.cluster.resync import Resync
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core.model import Policy, WorkloadKey
from tests.unit.operator.fake_api import FakeApi, serving
from tests.unit.operator.test_workloads import a_deployment, a_replica_set

ORDERS = WorkloadKey("shop", "deployment", "orders")
DEPLOYMENTS = "/apis/apps/v1/namespaces/shop/deployments"
REPLICA_SETS = "/apis/apps/v1/namespaces/shop/replicasets"
DRAINS = "/apis/ebbtide.dev/v1alpha1/namespaces/shop/drains"


def a_cluster() -> FakeApi:
    fake = FakeApi()
    fake.put(f"{DEPLOYMENTS}/orders", a_deployment())
    fake.put(f"{REPLICA_SETS}/orders-1", a_replica_set())
    return fake


async def test_everything_is_here_after_the_first_lists() -> None:
    async with serving(a_cluster()) as api:
        workloads = Workloads(Policy(), lambda _key: None)
        resync = Resync(api, workloads)
        task = asyncio.create_task(resync.run())
        await asyncio.wait_for(resync.synced.wait(), 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        workload = workloads.get(ORDERS)
        assert workload is not None
        assert [one.name for one in workload.sets] == ["orders-1"]


async def test_lists_of_many_pages_are_read_to_their_end() -> None:
    fake = a_cluster()
    for number in range(1100):
        fake.put(f"{REPLICA_SETS}/x{number}", a_replica_set(f"x{number}"))
    async with serving(fake) as api:
        workloads = Workloads(Policy(), lambda _key: None)
        await Resync(api, workloads).resync()
        workload = workloads.get(ORDERS)
        assert workload is not None
        assert len(workload.sets) == 1101


async def test_what_went_unseen_is_dropped_by_the_next_lists() -> None:
    fake = a_cluster()
    async with serving(fake) as api:
        workloads = Workloads(Policy(), lambda _key: None)
        resync = Resync(api, workloads)
        await resync.resync()
        fake.remove(f"{DEPLOYMENTS}/orders")
        await resync.resync()
        assert workloads.get(ORDERS) is None


async def test_a_drain_that_is_left_of_a_workload_that_opted_out_makes_it_a_concern() -> None:
    fake = FakeApi()
    fake.put(f"{DEPLOYMENTS}/orders", a_deployment(annotations={}))
    fake.put(f"{DRAINS}/deployment-orders", {"metadata": {"name": "deployment-orders", "namespace": "shop"}})
    told: list[WorkloadKey] = []
    async with serving(fake) as api:
        await Resync(api, Workloads(Policy(), told.append)).resync()
    assert told == [ORDERS]


async def test_a_cluster_without_the_definition_of_drain_is_no_error() -> None:
    fake = a_cluster()
    fake.refuse = lambda _method, path: 404 if path.endswith("/v1alpha1/drains") else None
    async with serving(fake) as api:
        resync = Resync(api, Workloads(Policy(), lambda _key: None))
        await resync.resync()
        assert resync.synced.is_set()


async def test_a_list_that_fails_changes_nothing() -> None:
    fake = a_cluster()
    async with serving(fake) as api:
        workloads = Workloads(Policy(), lambda _key: None)
        resync = Resync(api, workloads)
        await resync.resync()
        fake.remove(f"{DEPLOYMENTS}/orders")
        fake.refuse = lambda _method, path: 503 if path.endswith("replicasets") else None
        with pytest.raises(ApiError):
            await resync.resync()
        assert workloads.get(ORDERS) is not None
