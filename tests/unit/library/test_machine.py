"""The pod's states: examples that a reader can follow, then properties over random histories."""

from __future__ import annotations

import pytest

from ebbtide.lifecycle.machine import (
    COLLECT_S,
    AbandonTasks,
    CancelTasks,
    CloseIntake,
    DrainRequested,
    Durations,
    Exit,
    Machine,
    OpenIntake,
    Ordered,
    Reason,
    Report,
    SetReady,
    Source,
    Started,
    StoreRestarted,
    TasksChanged,
    Tick,
    UndrainRequested,
    next_deadline,
)
from ebbtide.protocol import Desired, PodState
from tests.unit.library.pod import Pod, order

API = DrainRequested(Reason(Source.API, "by hand"))
SIGTERM = DrainRequested(Reason(Source.SIGNAL, "SIGTERM"))
PRESTOP = DrainRequested(Reason(Source.PRESTOP))
NOW = Durations(0, 0, 10)


@pytest.fixture
def pod() -> Pod:
    pod = Pod(Machine(defaults=Durations(5, 60, 10)))
    pod.tell(Started())
    return pod


def test_serves_once_started() -> None:
    pod = Pod()
    assert pod.state is PodState.STARTING
    assert not pod.ready
    pod.tell(Started())
    assert pod.state is PodState.SERVING
    assert pod.ready


def test_goes_through_every_state_in_order(pod: Pod) -> None:
    pod.active = 3
    pod.tell(SIGTERM)
    assert (pod.state, pod.ready, pod.open) == (PodState.QUIESCING, False, True)
    pod.pass_time(5)
    assert (pod.state, pod.open) == (PodState.DRAINING, False)
    pod.pass_time(60)
    assert pod.state is PodState.CANCELLING
    assert pod.cancels == 1
    pod.finish_all()
    assert pod.state is PodState.EXITING
    assert pod.machine.forced
    assert pod.abandoned == 0


def test_without_quiesce_intake_closes_at_once(pod: Pod) -> None:
    pod.active = 1
    effects = pod.tell(Ordered(order(quiesce_s=0)))
    assert pod.state is PodState.DRAINING
    assert effects.index(SetReady(ready=False)) < effects.index(CloseIntake())


def test_is_drained_when_the_last_task_ends(pod: Pod) -> None:
    pod.active = 2
    pod.tell(Ordered(order(quiesce_s=0)))
    pod.finish()
    assert pod.state is PodState.DRAINING
    pod.finish()
    assert pod.state is PodState.DRAINED
    assert not pod.machine.forced


def test_a_count_from_before_intake_closed_proves_nothing() -> None:
    pod = Pod(answers_close=False)
    pod.tell(Started())
    pod.tell(TasksChanged(0))
    pod.tell(Ordered(order(quiesce_s=0)))
    assert pod.state is PodState.DRAINING
    pod.tell(TasksChanged(0))
    assert pod.state is PodState.DRAINED


def test_what_is_left_at_the_deadline_is_abandoned(pod: Pod) -> None:
    pod.active = 2
    pod.tell(Ordered(order(quiesce_s=5, drain_timeout_s=60, cancel_grace_s=10)))
    pod.pass_time(74)
    assert pod.state is PodState.CANCELLING
    pod.pass_time(1)
    assert pod.state is PodState.EXITING
    assert pod.abandoned == 2
    assert pod.machine.forced


def test_one_late_tick_takes_every_step_that_is_due(pod: Pod) -> None:
    pod.active = 1
    pod.tell(SIGTERM)
    pod.now += 1000
    effects = [effect for effect in pod.tell(Tick()) if effect != Report()]
    cancel = next(effect for effect in effects if isinstance(effect, CancelTasks))
    assert effects == [CloseIntake(), cancel, AbandonTasks(), Exit(insist=True)]


def test_the_first_reason_stays(pod: Pod) -> None:
    pod.active = 1
    pod.tell(Ordered(order(reason="rollout")))
    pod.tell(SIGTERM)
    assert pod.machine.reason == Reason(Source.ORDER, "rollout")


def test_a_later_drain_shortens_and_never_lengthens(pod: Pod) -> None:
    pod.active = 1
    pod.tell(Ordered(order(1, drain_timeout_s=60)))
    deadline_at = pod.machine.deadline_at
    pod.tell(Ordered(order(2, drain_timeout_s=600)))
    assert pod.machine.deadline_at == deadline_at
    pod.tell(Ordered(order(3, drain_timeout_s=6)))
    assert pod.machine.deadline_at < deadline_at


@pytest.mark.parametrize("deletion", [SIGTERM, PRESTOP])
def test_deletion_after_an_order_is_no_new_drain(pod: Pod, deletion: DrainRequested) -> None:
    pod.active = 1
    pod.tell(Ordered(order(quiesce_s=0)))
    times = (pod.machine.cancel_at, pod.machine.deadline_at)
    pod.pass_time(10)
    pod.tell(deletion)
    assert (pod.machine.cancel_at, pod.machine.deadline_at) == times
    pod.finish()
    assert pod.state is PodState.EXITING


def test_a_drained_pod_leaves_when_its_deletion_comes(pod: Pod) -> None:
    pod.tell(Ordered(order(quiesce_s=0)))
    assert pod.state is PodState.DRAINED
    pod.tell(PRESTOP)
    assert pod.state is PodState.EXITING
    assert pod.insisted


def test_a_drained_pod_that_nobody_collects_leaves_just_before_its_own_deadline(pod: Pod) -> None:
    pod.tell(Ordered(order(quiesce_s=0, drain_timeout_s=60, cancel_grace_s=10)))
    pod.pass_time(70 - COLLECT_S - 0.1)
    assert pod.state is PodState.DRAINED
    pod.pass_time(0.1)
    assert pod.state is PodState.EXITING
    assert pod.insisted


def test_an_order_to_leave_ends_the_process_once_it_is_drained(pod: Pod) -> None:
    pod.active = 1
    pod.tell(Ordered(order(leave=True, drain_timeout_s=60.0)))
    assert pod.state is PodState.DRAINING
    pod.tell(Ordered(order(2, desired=Desired.SERVE)))
    assert pod.state is PodState.DRAINING
    pod.finish()
    assert pod.state is PodState.EXITING
    assert pod.insisted


def test_a_drain_by_hand_waits_for_ever(pod: Pod) -> None:
    pod.tell(API)
    pod.pass_time(5)
    assert pod.state is PodState.DRAINED
    assert next_deadline(pod.machine) is None
    pod.pass_time(1e6)
    assert pod.state is PodState.DRAINED


def test_a_drain_by_hand_can_ask_to_leave(pod: Pod) -> None:
    pod.tell(DrainRequested(Reason(Source.API), Durations(), leave=True))
    assert pod.state is PodState.EXITING
    assert not pod.insisted


def test_a_second_signal_cancels_at_once(pod: Pod) -> None:
    pod.active = 1
    pod.tell(SIGTERM)
    pod.tell(DrainRequested(Reason(Source.SIGNAL), NOW))
    assert pod.state is PodState.CANCELLING
    assert pod.machine.deadline_at == pod.now + 10


def test_an_order_to_cancel_goes_straight_to_cancelling(pod: Pod) -> None:
    pod.active = 1
    effects = pod.tell(Ordered(order(desired=Desired.CANCEL, quiesce_s=5)))
    assert pod.state is PodState.CANCELLING
    kinds = [type(effect) for effect in effects]
    assert kinds.index(CloseIntake) < kinds.index(CancelTasks)


def test_an_order_to_cancel_finds_an_idle_pod_drained_and_unforced(pod: Pod) -> None:
    pod.tell(Ordered(order(desired=Desired.CANCEL)))
    assert pod.state is PodState.DRAINED
    assert not pod.machine.forced
    assert pod.cancels == 0


@pytest.mark.parametrize("after_s", [0, 5])
def test_an_order_to_serve_takes_a_drain_back(pod: Pod, after_s: float) -> None:
    pod.active = 1
    pod.tell(Ordered(order(1, quiesce_s=5)))
    pod.pass_time(after_s)
    pod.tell(Ordered(order(2, desired=Desired.SERVE)))
    assert (pod.state, pod.ready, pod.open) == (PodState.SERVING, True, True)
    assert pod.machine.reason is None
    assert pod.machine.generation == 2
    assert next_deadline(pod.machine) is None


def test_a_cleanly_drained_pod_serves_again(pod: Pod) -> None:
    pod.tell(Ordered(order(1, quiesce_s=0)))
    assert pod.state is PodState.DRAINED
    effects = pod.tell(UndrainRequested())
    assert effects == [OpenIntake(), SetReady(ready=True), Report()]
    assert (pod.state, pod.ready, pod.open) == (PodState.SERVING, True, True)


def test_a_pod_that_cancels_restarts_instead_of_serving_again(pod: Pod) -> None:
    pod.active = 1
    pod.tell(Ordered(order(1, quiesce_s=0, drain_timeout_s=1)))
    pod.pass_time(1)
    pod.tell(Ordered(order(2, desired=Desired.SERVE)))
    assert pod.state is PodState.CANCELLING
    pod.finish()
    assert pod.state is PodState.EXITING
    assert pod.insisted


def test_nothing_takes_a_deletion_back(pod: Pod) -> None:
    pod.active = 1
    pod.tell(SIGTERM)
    pod.tell(UndrainRequested())
    pod.tell(Ordered(order(1, desired=Desired.SERVE)))
    assert pod.state is PodState.QUIESCING
    assert pod.machine.generation == 1


def test_an_undrained_pod_that_never_started_is_not_ready() -> None:
    pod = Pod()
    pod.tell(Ordered(order(1, quiesce_s=0)))
    pod.tell(Ordered(order(2, desired=Desired.SERVE)))
    assert (pod.state, pod.ready, pod.open) == (PodState.STARTING, False, True)


@pytest.mark.parametrize("stale", [order(3, epoch=7), order(2, epoch=7), order(9, epoch=6)])
def test_an_order_that_was_seen_or_overtaken_is_ignored(pod: Pod, stale: object) -> None:
    pod.tell(Ordered(order(3, epoch=7, desired=Desired.SERVE)))
    before = pod.machine
    assert pod.tell(Ordered(stale)) == []  # type: ignore[arg-type]
    assert pod.machine == before


def test_a_store_that_began_anew_is_obeyed(pod: Pod) -> None:
    pod.tell(Ordered(order(9, epoch=900, desired=Desired.SERVE)))
    pod.tell(StoreRestarted())
    pod.tell(Ordered(order(1, epoch=2)))
    assert pod.machine.draining


def test_every_obeyed_order_is_reported(pod: Pod) -> None:
    assert Report() in pod.tell(Ordered(order(1, desired=Desired.SERVE)))
    assert Report() in pod.tell(Ordered(order(2)))
    assert Report() in pod.tell(Ordered(order(3)))
