import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from ebbtide.protocol import Desired, DrainRecord, Order, Outcome, Phase, RolloutPhase
from ebbtide_operator.apply import Applier
from ebbtide_operator.core import names
from ebbtide_operator.core.model import (
    Action,
    Adopt,
    Forget,
    Notify,
    Pin,
    Plan,
    PodView,
    PublishPhase,
    Release,
    RemoveStatus,
    Return,
    SendOrder,
    Snapshot,
    WorkloadKey,
    WorkloadView,
    WriteRecord,
    WriteStatus,
)
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import Conflict, Deposed, Refused, StoreUnavailable

KEY = WorkloadKey("shop", "deployment", "orders")
WORKLOAD = WorkloadView(KEY, "w", 1, 1, replicas=3, max_surge=1, max_unavailable=0)


def a_pod(name: str = "a", **fields: Any) -> PodView:
    return PodView(namespace="shop", name=name, uid=f"uid-{name}", owner_uid="rs", created_at=1.0, **fields)


def an_order(desired: Desired = Desired.DRAIN) -> Order:
    return Order(desired=desired, generation=1, epoch=7)


class Recorder:
    """Both ports at once: remembers what was written, in order, and fails where it is told to."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, ...]] = []
        self.marks: dict[str, dict[str, str | None]] = {}
        self.statuses: list[Mapping[str, object]] = []
        self.failing: dict[tuple[str, ...], Exception] = {}

    def _write(self, *what: str) -> None:
        if what in self.failing:
            raise self.failing[what]
        self.writes.append(what)

    async def patch_pod(self, pod: PodView, *, annotations: Any = None, labels: Any = None) -> None:
        self._write("patch", pod.name)
        self.marks.setdefault(pod.name, {}).update(annotations or {}, **(labels or {}))

    async def delete_pod(self, pod: PodView) -> None:
        self._write("delete", pod.name)

    async def write_status(self, workload: WorkloadView, status: Mapping[str, object]) -> None:
        self._write("status")
        self.statuses.append(status)

    async def remove_status(self, key: WorkloadKey) -> None:
        self._write("remove status")

    async def post_event(self, workload: WorkloadView, reason: str, message: str, *, warning: bool) -> None:
        self._write("event", reason)

    async def send_order(self, namespace: str, uid: str, order: Order) -> None:
        self._write("order", uid.removeprefix("uid-"))

    async def publish_phase(self, key: WorkloadKey, phase: Phase) -> None:
        self._write("phase")

    async def write_record(self, key: WorkloadKey, record: DrainRecord) -> None:
        self._write("record", record.pod)

    async def end(self, key: WorkloadKey, record: DrainRecord) -> None:
        self._write("end", record.pod)

    async def forget(self, namespace: str, uid: str) -> None:
        self._write("forget", uid.removeprefix("uid-"))

    async def remove_phase(self, key: WorkloadKey) -> None:
        self._write("remove phase")


class Scene:
    def __init__(self) -> None:
        self.recorder = Recorder()
        self.metrics = Metrics()
        self.now = 100.0
        self.may_delete = True
        both: Any = self.recorder
        self.applier = Applier(both, both, self.metrics, lambda: self.now, lambda: self.may_delete)

    async def apply(self, *actions: Action, status: Mapping[str, object] | None = None) -> None:
        snapshot, plan = Snapshot(WORKLOAD, (), status=status), Plan(actions)
        await self.applier.apply(snapshot, plan)
        await self.applier.tell(snapshot, plan)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


LABELS = {"namespace": "shop", "kind": "deployment", "workload": "orders"}


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_the_phase_comes_first_and_what_tells_of_it_last(scene: Scene) -> None:
    await scene.apply(
        Notify("DrainStarted", ""),
        WriteStatus({"phase": "RollingOut"}),
        SendOrder(a_pod(), an_order()),
        Pin(a_pod(), 100.0, 175.0),
        PublishPhase(Phase(phase=RolloutPhase.ROLLING_OUT)),
    )
    assert scene.recorder.writes == [
        ("phase",),
        ("order", "a"),
        ("patch", "a"),
        ("event", "DrainStarted"),
        ("status",),
    ]


async def test_a_release_does_not_wait_for_the_phase(scene: Scene) -> None:
    told, deleted = asyncio.Event(), asyncio.Event()

    async def delete_pod(pod: PodView) -> None:
        scene.recorder.writes.append(("delete", pod.name))
        deleted.set()

    async def publish_slowly(key: WorkloadKey, phase: Phase) -> None:
        await told.wait()
        scene.recorder.writes.append(("phase",))

    scene.recorder.publish_phase = publish_slowly  # type: ignore[method-assign]
    scene.recorder.delete_pod = delete_pod  # type: ignore[method-assign]
    applying = asyncio.create_task(
        scene.apply(
            PublishPhase(Phase(phase=RolloutPhase.ROLLING_OUT)),
            Release(a_pod("a"), Outcome.CLEAN, ""),
            SendOrder(a_pod("b"), an_order()),
        )
    )
    async with asyncio.timeout(5):
        await deleted.wait()
    told.set()
    await applying
    assert scene.recorder.writes == [("delete", "a"), ("phase",), ("order", "b")]


async def test_an_order_does_not_wait_for_a_release(scene: Scene) -> None:
    ordered = asyncio.Event()

    async def delete_slowly(pod: PodView) -> None:
        await ordered.wait()
        scene.recorder.writes.append(("delete", pod.name))

    async def send_order(namespace: str, uid: str, order: Order) -> None:
        scene.recorder.writes.append(("order", uid))
        ordered.set()

    scene.recorder.delete_pod = delete_slowly  # type: ignore[method-assign]
    scene.recorder.send_order = send_order  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        await scene.apply(
            Release(a_pod("a"), Outcome.CLEAN, ""), SendOrder(a_pod("b"), an_order()), WriteStatus({"phase": "Stable"})
        )
    assert scene.recorder.writes == [("order", "uid-b"), ("delete", "a"), ("status",)]


async def test_what_failed_beside_a_release_is_told_once_both_are_done(scene: Scene) -> None:
    scene.recorder.failing[("order", "b")] = Deposed("epoch 7")
    scene.recorder.failing[("delete", "a")] = Conflict("gone")
    with pytest.raises(Deposed):
        await scene.apply(
            Release(a_pod("a"), Outcome.CLEAN, ""),
            SendOrder(a_pod("b"), an_order()),
            SendOrder(a_pod("c"), an_order()),
            WriteStatus({}),
        )
    assert scene.recorder.writes == [("order", "c")]


async def test_the_status_does_not_wait_for_an_event(scene: Scene) -> None:
    told = asyncio.Event()

    async def post_slowly(workload: WorkloadView, reason: str, message: str, *, warning: bool) -> None:
        await told.wait()
        raise Conflict("the namespace is gone")

    async def write_status(workload: WorkloadView, status: Mapping[str, object]) -> None:
        scene.recorder.writes.append(("status",))
        told.set()

    scene.recorder.post_event = post_slowly  # type: ignore[method-assign]
    scene.recorder.write_status = write_status  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        async with asyncio.timeout(5):
            await scene.apply(Notify("DrainStarted", ""), WriteStatus({"phase": "Stable"}))
    assert scene.recorder.writes == [("status",)]


async def test_without_its_phase_a_plan_goes_no_further(scene: Scene) -> None:
    scene.recorder.failing[("phase",)] = Deposed("epoch 7")
    with pytest.raises(Deposed):
        await scene.apply(
            PublishPhase(Phase(phase=RolloutPhase.ROLLING_OUT)), SendOrder(a_pod("b"), an_order()), WriteStatus({})
        )
    assert scene.recorder.writes == []


async def test_a_refused_order_leaves_its_pod_unmarked_and_the_others_served(scene: Scene) -> None:
    scene.recorder.failing[("order", "a")] = StoreUnavailable("etcd: timed out")
    with pytest.raises(StoreUnavailable):
        await scene.apply(
            SendOrder(a_pod("a"), an_order()),
            Pin(a_pod("a"), 100.0, 175.0),
            SendOrder(a_pod("b"), an_order()),
            Pin(a_pod("b"), 100.0, 175.0),
            WriteStatus({}),
        )
    assert "a" not in scene.recorder.marks
    assert names.DRAINING_SINCE in scene.recorder.marks["b"]
    assert scene.sample("ebbtide_orders_total", **LABELS, desired="drain") == 1


async def test_of_several_failures_the_one_that_explains_the_others_is_told(scene: Scene) -> None:
    scene.recorder.failing[("patch", "a")] = Conflict("gone")
    scene.recorder.failing[("order", "b")] = Deposed("epoch 7")
    with pytest.raises(Deposed):
        await scene.apply(Adopt(a_pod("a"), "true"), SendOrder(a_pod("b"), an_order()))


async def test_a_pod_that_is_gone_does_not_keep_the_rest_from_being_done(scene: Scene) -> None:
    scene.recorder.failing[("patch", "a")] = Conflict("gone")
    with pytest.raises(Conflict):
        await scene.apply(Adopt(a_pod("a"), "true"), Release(a_pod("b"), Outcome.CLEAN, ""))
    assert scene.recorder.writes == [("delete", "b")]


async def test_a_released_pod_is_deleted_in_one_write(scene: Scene) -> None:
    await scene.apply(Release(a_pod("a"), Outcome.CLEAN, ""))
    assert scene.recorder.writes == [("delete", "a")]


async def test_a_refused_delete_leaves_the_pod_marked_as_released_to_its_controller(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.recorder.failing[("delete", "a")] = Refused("403 Forbidden")
    await scene.apply(Release(a_pod("a"), Outcome.CLEAN, ""), Notify("DrainStarted", ""))
    assert scene.recorder.marks["a"][names.RELEASED] == "clean"
    assert scene.recorder.marks["a"][names.DELETION_COST] == str(names.RELEASED_COST)
    assert scene.recorder.writes == [("patch", "a"), ("event", "DrainStarted")]
    assert "pod.delete_refused" in caplog.text


async def test_one_that_may_not_delete_any_more_leaves_released_pods_to_their_controllers(scene: Scene) -> None:
    scene.may_delete = False
    await scene.apply(Release(a_pod("a"), Outcome.CLEAN, ""))
    assert scene.recorder.writes == [("patch", "a")]


async def test_a_pin_keeps_the_users_own_cost_and_a_return_restores_it(scene: Scene) -> None:
    await scene.apply(Pin(a_pod(deletion_cost=5), 100.0, 175.0))
    assert scene.recorder.marks["a"][names.DELETION_COST] == str(names.DRAINING_COST)
    assert scene.recorder.marks["a"][names.ORIGINAL_COST] == "5"
    await scene.apply(Return(a_pod(deletion_cost=names.DRAINING_COST, original_cost="5", draining_since=100.0)))
    assert scene.recorder.marks["a"][names.DELETION_COST] == "5"
    assert scene.recorder.marks["a"][names.DRAINING_SINCE] is None


async def test_the_tasks_of_a_pod_that_serves_again_are_counted_at_its_end_and_not_twice(scene: Scene) -> None:
    returned = DrainRecord(pod="a", uid="uid-a", outcome=Outcome.RETURNED, reason="", tally={"finished": 2})
    ended = DrainRecord(pod="a", uid="uid-a", outcome=Outcome.CLEAN, reason="", tally={"finished": 5})
    await scene.apply(WriteRecord(returned), WriteRecord(ended))
    assert scene.sample("ebbtide_drained_tasks_total", **LABELS, outcome="finished") == 5


async def test_a_record_is_counted_once_it_is_written_in_one_step_with_the_end_of_its_pod(scene: Scene) -> None:
    record = DrainRecord(
        pod="a",
        uid="uid-a",
        outcome=Outcome.CLEAN,
        reason="Rollout",
        started_at=90,
        ended_at=100,
        tally={"finished": 3, "made up": 1},
    )
    scene.recorder.failing[("end", "a")] = StoreUnavailable("etcd: down")
    with pytest.raises(StoreUnavailable):
        await scene.apply(WriteRecord(record), Forget("shop", "uid-a"))
    assert scene.recorder.writes == []
    assert scene.sample("ebbtide_drains_total", **LABELS, outcome="clean") is None
    scene.recorder.failing.clear()
    await scene.apply(WriteRecord(record), Forget("shop", "uid-a"))
    assert scene.recorder.writes == [("end", "a")]
    assert scene.sample("ebbtide_drains_total", **LABELS, outcome="clean") == 1
    assert scene.sample("ebbtide_drain_duration_seconds_sum", **LABELS) == 10
    assert scene.sample("ebbtide_drained_tasks_total", **LABELS, outcome="finished") == 3
    assert scene.sample("ebbtide_drained_tasks_total", **LABELS, outcome="other") == 1


async def test_the_time_from_the_decision_to_the_delete_is_measured_once(scene: Scene) -> None:
    await scene.apply(Release(a_pod(), Outcome.CLEAN, ""))
    scene.now += 0.03
    scene.applier.note_terminating("uid-a")
    scene.applier.note_terminating("uid-a")
    assert scene.sample("ebbtide_released_to_deleted_seconds_count") == 1
    assert scene.sample("ebbtide_released_to_deleted_seconds_sum") == pytest.approx(0.03)


async def test_a_release_that_had_to_be_planned_again_is_measured_from_its_first_decision(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scene.recorder.failing[("delete", "a")] = TimeoutError("no answer")
    with pytest.raises(TimeoutError):
        await scene.apply(Release(a_pod("a"), Outcome.CLEAN, ""))
    scene.now += 1.5
    scene.recorder.failing.clear()
    await scene.apply(Release(a_pod("a"), Outcome.CLEAN, ""))
    scene.applier.note_terminating("uid-a")
    assert scene.sample("ebbtide_released_to_deleted_seconds_sum") == pytest.approx(1.5)
    (told,) = [record for record in caplog.records if record.message == "pod.released"]
    assert vars(told)["decided_at"] == "1970-01-01T00:01:40.000Z"


async def test_a_release_that_was_taken_back_is_not_measured(scene: Scene) -> None:
    scene.may_delete = False
    await scene.apply(Release(a_pod("a"), Outcome.CLEAN, ""))
    await scene.apply(Return(a_pod("a", released="clean")))
    scene.applier.note_terminating("uid-a")
    assert scene.sample("ebbtide_released_to_deleted_seconds_count") == 0


async def test_fields_that_a_new_status_lacks_are_removed(scene: Scene) -> None:
    await scene.apply(WriteStatus({"phase": "Stable"}), status={"phase": "RollingOut", "deadline": "x"})
    assert scene.recorder.statuses == [{"phase": "Stable", "deadline": None}]


async def test_an_unmanaged_workload_leaves_neither_status_nor_phase(scene: Scene) -> None:
    await scene.apply(RemoveStatus())
    assert scene.recorder.writes == [("remove status",), ("remove phase",)]
