"""Statuses and Events that cannot be told: when they are tried again, and what does not wait for them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide_operator.core import reasons
from ebbtide_operator.reconcile import LOOK_AGAIN_S, TELL_AGAIN_S
from tests.unit.operator.reconcile_scene import ANNOTATIONS, FORBIDDEN, Scene, a_scene
from tests.unit.operator.test_workloads import a_deployment


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with a_scene() as found:
        yield found


@pytest.mark.parametrize("call", ["write_status", "read_status"])
async def test_a_status_that_is_refused_delays_no_deadline(scene: Scene, call: str) -> None:
    scene.cluster.refusing = {call}
    for _ in range(12):
        await scene.look()
        scene.clock.now += LOOK_AGAIN_S
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


async def test_a_status_that_was_refused_is_written_later(scene: Scene) -> None:
    scene.cluster.refusing = {"write_status"}
    pauses = []
    for _ in range(8):
        pauses.append(again_s := await scene.look())
        assert again_s is not None
        scene.clock.now += again_s
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
    scene.clock.now += TELL_AGAIN_S
    await scene.look()
    assert scene.cluster.status is before


@pytest.mark.parametrize("call", ["write_status", "read_status"])
async def test_a_pass_that_is_woken_meanwhile_does_not_try_to_tell_again(scene: Scene, call: str) -> None:
    scene.cluster.refusing = {call}
    await scene.look()
    for number in range(1, 10):
        scene.clock.now += TELL_AGAIN_S / 10
        assert await scene.look() == pytest.approx(TELL_AGAIN_S * (1 - number / 10), abs=0.001)
    assert scene.failures == [FORBIDDEN]
    scene.clock.now += TELL_AGAIN_S
    await scene.look()
    assert scene.failures == [FORBIDDEN] * 2


async def test_a_pause_that_ends_within_a_pass_is_followed_by_another(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.cluster.refusing = {"write_status"}
    for _ in range(6):
        await scene.look()
        scene.clock.now += LOOK_AGAIN_S
    await scene.look()

    async def post_slowly(*_arguments: Any, **_more: Any) -> None:
        scene.clock.now += LOOK_AGAIN_S

    monkeypatch.setattr(scene.cluster, "post_event", post_slowly)
    scene.scale_down()
    pauses: list[float | None] = []
    async with asyncio.timeout(10):
        while not scene.state.orders("shop"):
            scene.clock.now += 1
            pauses.append(await scene.look())
    assert pauses[-1] == 0
    assert len(scene.failures) == 7


async def test_events_are_posted_while_the_status_cannot_be_written(scene: Scene) -> None:
    scene.cluster.refusing = {"write_status"}
    for _ in range(5):
        await scene.look()
        scene.clock.now += LOOK_AGAIN_S
    await scene.look()
    await scene.drain()
    assert scene.failures == [FORBIDDEN] * 6, "all of the drain begins in a pause"
    assert reasons.STARTED in scene.cluster.events


async def test_an_annotation_is_warned_of_no_more_often_than_the_status_is_tried(scene: Scene) -> None:
    annotations = ANNOTATIONS | {"ebbtide.dev/drain": "perhaps"}
    scene.workloads.take_deployment(a_deployment(2, annotations=annotations, replicas=1), deleted=False)
    scene.cluster.refusing = {"write_status"}
    for _ in range(5):
        await scene.look()
    assert scene.cluster.events == [reasons.INVALID_ANNOTATION]


async def test_a_clock_that_is_set_back_does_not_prolong_the_pause(scene: Scene) -> None:
    scene.cluster.refusing = {"write_status"}
    await scene.look()
    scene.cluster.refusing.clear()
    scene.clock.now -= 3600
    await scene.look()
    assert scene.cluster.status is not None
