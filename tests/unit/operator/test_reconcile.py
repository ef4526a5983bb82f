"""Passes over one workload that go wrong somewhere: what must not be late, and what is read for it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ebbtide.protocol import Desired, Outcome, PodState
from ebbtide_operator.cluster.api import ApiError
from ebbtide_operator.core.model import PodView
from ebbtide_operator.reconcile import LOOK_AGAIN_S, MISSING_FOR_S, ORPHANED_FOR_S
from tests.unit.operator.reconcile_scene import ANNOTATIONS, Scene, a_scene
from tests.unit.operator.test_workloads import ORDERS, a_deployment, a_replica_set
from tests.unit.store.stand import a_report, report, seen


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with a_scene() as found:
        yield found


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
