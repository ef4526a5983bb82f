from dataclasses import replace
from typing import Any, TypeVar

import pytest

from ebbtide.protocol import Desired, DrainRecord, Outcome, Phase, PodState, RolloutPhase
from ebbtide_operator.core.decide import decide
from ebbtide_operator.core.model import (
    Adopt,
    Forget,
    Mode,
    Notify,
    Pin,
    Plan,
    Problem,
    PublishPhase,
    Release,
    RemoveStatus,
    Return,
    SendOrder,
    WriteRecord,
    WriteStatus,
)
from tests.unit.core.builders import NOW, a_pod, a_policy, a_report, a_set, a_snapshot, a_workload, an_order

A = TypeVar("A")

STABLE = Phase(phase=RolloutPhase.STABLE, revision="1")


def of(plan: Plan, kind: type[A]) -> list[A]:
    return [action for action in plan.actions if isinstance(action, kind)]


def drained_names(plan: Plan) -> list[str]:
    return [one.pod.name for one in of(plan, SendOrder) if one.order.desired is Desired.DRAIN]


def reports(*pods: Any, **changes: Any) -> dict[str, Any]:
    return {pod.uid: a_report(**changes) for pod in pods}


DRAINING = {"draining_since": NOW - 1, "deadline_at": NOW + 74, "original_cost": "5", "deletion_cost": -2147483647}


class TestChoosing:
    def test_an_idle_pod_goes_before_busy_ones(self) -> None:
        pods = (a_pod("a"), a_pod("b"), a_pod("c"))
        said = {pod.uid: a_report(active=count) for pod, count in zip(pods, (4, 0, 2), strict=True)}
        plan = decide(a_snapshot(a_workload(replicas=2), pods, reports=said), NOW)
        assert drained_names(plan) == ["b"]

    def test_a_pod_that_does_not_report_counts_as_the_busiest(self) -> None:
        pods = (a_pod("a"), a_pod("b"))
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=reports(pods[1], active=9)), NOW)
        assert drained_names(plan) == ["b"]

    def test_the_users_deletion_cost_beats_the_load(self) -> None:
        pods = (a_pod("a", deletion_cost=-1), a_pod("b"))
        said = {pods[0].uid: a_report(active=9), pods[1].uid: a_report(active=0)}
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=said), NOW)
        assert drained_names(plan) == ["a"]

    def test_an_unready_pod_goes_first_since_its_controller_asks_for_it_whatever_its_cost(self) -> None:
        pods = (a_pod("a", deletion_cost=-1), a_pod("b", ready=False))
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=reports(*pods)), NOW)
        assert drained_names(plan) == ["b"]

    def test_ties_go_to_the_youngest(self) -> None:
        pods = (a_pod("a", created_at=NOW - 100), a_pod("b", created_at=NOW - 50))
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=reports(*pods)), NOW)
        assert drained_names(plan) == ["b"]

    def test_holds_when_budget_is_spent(self) -> None:
        pods = (a_pod("a", **DRAINING), a_pod("b"), a_pod("c"))
        workload = a_workload(replicas=1, policy=a_policy(max_draining=1))
        snapshot = a_snapshot(workload, pods, reports=reports(*pods), orders={pods[0].uid: an_order()})
        plan = decide(snapshot, NOW)
        assert (drained_names(plan), plan.reason) == ([], "BudgetSpent")

    def test_a_pod_of_which_nothing_ever_ran_is_let_go_at_once(self) -> None:
        pods = (a_pod("a"), a_pod("b", scheduled=False, started=False, ready=False))
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=reports(pods[0])), NOW)
        assert [(one.pod.name, one.outcome) for one in of(plan, Release)] == [("b", Outcome.CLEAN)]
        assert drained_names(plan) == []

    def test_an_order_comes_before_its_pin_and_both_name_the_same_deadline(self) -> None:
        pods = (a_pod("a"), a_pod("b"))
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=reports(*pods, active=1)), NOW)
        kinds = [type(one) for one in plan.actions if isinstance(one, SendOrder | Pin)]
        assert kinds == [SendOrder, Pin]
        assert (of(plan, Pin)[0].since, of(plan, Pin)[0].deadline_at) == (NOW, NOW + 75)

    def test_an_idle_pod_without_quiesce_time_gets_no_pin(self) -> None:
        pods = (a_pod("a"), a_pod("b"))
        workload = a_workload(replicas=1, policy=a_policy(quiesce_s=0.0))
        plan = decide(a_snapshot(workload, pods, reports=reports(*pods)), NOW)
        assert (len(drained_names(plan)), of(plan, Pin)) == (1, [])


class TestCensus:
    def test_the_plan_that_asks_does_not_choose(self) -> None:
        pods = (a_pod("a"), a_pod("b"))
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=reports(*pods), phase=STABLE), NOW)
        assert (len(of(plan, PublishPhase)), drained_names(plan)) == (1, [])

    def test_waits_for_late_answers_and_no_longer_than_half_a_second(self) -> None:
        pods = (a_pod("a"), a_pod("b"))
        snapshot = a_snapshot(
            a_workload(replicas=1), pods, reports=reports(*pods), phase_revision=2, phase_at=NOW - 0.25
        )
        plan = decide(snapshot, NOW)
        assert drained_names(plan) == []
        assert plan.requeue_after_s == pytest.approx(0.25, abs=0.02)
        assert len(drained_names(decide(snapshot, NOW + 0.26))) == 1

    def test_is_over_where_the_clock_was_set_back(self) -> None:
        pods = (a_pod("a"), a_pod("b"))
        snapshot = a_snapshot(a_workload(replicas=1), pods, reports=reports(*pods), phase_revision=2, phase_at=NOW)
        assert drained_names(decide(snapshot, NOW)) == []
        assert len(drained_names(decide(snapshot, NOW - 3600))) == 1

    def test_nobody_is_asked_where_all_must_go(self) -> None:
        pods = (a_pod("a"), a_pod("b"))
        snapshot = a_snapshot(a_workload(replicas=0), pods, reports=reports(*pods), phase=STABLE)
        assert sorted(drained_names(decide(snapshot, NOW))) == ["a", "b"]


class TestEnding:
    def plan(self, report: Any, now: float = NOW, **pod: Any) -> Plan:
        pods = (a_pod("a", **DRAINING | pod), a_pod("b"))
        said = {} if report is None else {pods[0].uid: report}
        snapshot = a_snapshot(a_workload(replicas=1), pods, orders={pods[0].uid: an_order()}, reports=said)
        return decide(snapshot, now)

    @pytest.mark.parametrize(
        ("changes", "outcome"),
        [
            ({}, Outcome.CLEAN),
            ({"live": False}, Outcome.CLEAN),
            ({"forced": True}, Outcome.CANCELLED),
            ({"forced": True, "active": 2}, Outcome.ABANDONED),
            ({"tally": {"abandoned": 1}}, Outcome.ABANDONED),
            ({"tally": {"abandoned": 1}, "drain": {"counts": {"abandoned": 1}}}, Outcome.ABANDONED),
            ({"tally": {"abandoned": 1}, "drain": {"counts": {"finished": 2}}}, Outcome.CLEAN),
            ({"tally": {"abandoned": 1}, "drain": {"counts": "many"}}, Outcome.ABANDONED),
            ({"drain": {"counts": {"abandoned": "many"}}}, Outcome.CLEAN),
        ],
    )
    def test_a_drained_pod_is_released_with_what_it_said(self, changes: dict[str, Any], outcome: Outcome) -> None:
        plan = self.plan(a_report(state=PodState.DRAINED, generation=1, **changes))
        assert [one.outcome for one in of(plan, Release)] == [outcome]

    def test_an_answer_to_an_earlier_order_is_no_answer(self) -> None:
        assert of(self.plan(a_report(state=PodState.DRAINED, generation=0)), Release) == []

    def test_silence_is_never_taken_for_drained(self) -> None:
        assert of(self.plan(None), Release) == []

    @pytest.mark.parametrize(("report", "outcome"), [(None, "unknown"), (a_report(active=2), "abandoned")])
    def test_the_deadline_ends_every_hold(self, report: Any, outcome: str) -> None:
        assert of(self.plan(report, NOW + 73.9), Release) == []
        assert [one.outcome for one in of(self.plan(report, NOW + 74), Release)] == [outcome]

    def test_looks_again_at_the_deadline_without_being_woken(self) -> None:
        assert self.plan(None).requeue_after_s == pytest.approx(74, abs=0.1)

    def test_the_deadline_holds_although_its_pin_was_lost(self) -> None:
        pod = a_pod("a")
        order = an_order(issued_at=NOW - 75)
        plan = decide(a_snapshot(a_workload(replicas=0), (pod,), orders={pod.uid: order}), NOW)
        assert [one.outcome for one in of(plan, Release)] == [Outcome.UNKNOWN]

    def test_the_deadline_holds_although_the_replicaset_is_out_of_sight(self) -> None:
        pod = a_pod("a", owner_uid="elsewhere", **DRAINING)
        plan = decide(a_snapshot(a_workload(replicas=0), (pod,), orders={pod.uid: an_order()}), NOW + 75)
        assert [one.pod.name for one in of(plan, Release)] == ["a"]


class TestReturning:
    def test_the_newest_drain_is_taken_back_first(self) -> None:
        pods = (a_pod("a", **DRAINING), a_pod("b", **DRAINING | {"draining_since": NOW - 9}), a_pod("c"))
        orders = {pods[0].uid: an_order(generation=4), pods[1].uid: an_order(pod="b", issued_at=NOW - 9)}
        plan = decide(a_snapshot(a_workload(replicas=2), pods, orders=orders, reports=reports(*pods)), NOW)
        assert [(one.pod.name, one.order.desired, one.order.generation) for one in of(plan, SendOrder)] == [
            ("a", Desired.SERVE, 5)
        ]
        assert [one.pod.name for one in of(plan, Return)] == ["a"]
        assert [one.record.outcome for one in of(plan, WriteRecord)] == [Outcome.RETURNED]

    def test_a_pod_that_cancelled_tasks_is_taken_back_last(self) -> None:
        pods = (a_pod("a", **DRAINING), a_pod("b", **DRAINING | {"draining_since": NOW - 9}), a_pod("c"))
        orders = {pods[0].uid: an_order(), pods[1].uid: an_order(pod="b", issued_at=NOW - 9)}
        said = {pods[0].uid: a_report(state=PodState.CANCELLING, forced=True, generation=1)}
        plan = decide(a_snapshot(a_workload(replicas=2), pods, orders=orders, reports=said), NOW)
        assert [one.pod.name for one in of(plan, Return)] == ["b"]

    def test_a_released_pod_that_is_not_too_many_any_more_is_taken_back(self) -> None:
        pod = a_pod("a", released="clean", **DRAINING)
        plan = decide(a_snapshot(a_workload(replicas=1), (pod,), orders={pod.uid: an_order()}), NOW)
        assert [one.pod.name for one in of(plan, Return)] == ["a"]

    def test_a_released_pod_is_taken_back_after_one_that_cancelled_tasks(self) -> None:
        pods = (a_pod("a", released="clean", **DRAINING), a_pod("b", **DRAINING))
        orders = {pods[0].uid: an_order(), pods[1].uid: an_order(pod="b")}
        said = {pods[1].uid: a_report(state=PodState.CANCELLING, forced=True, generation=1)}
        plan = decide(a_snapshot(a_workload(replicas=1), pods, orders=orders, reports=said), NOW)
        assert [one.pod.name for one in of(plan, Return)] == ["b"]

    def test_a_return_cut_short_is_finished(self) -> None:
        pod = a_pod("a", **DRAINING)
        orders = {pod.uid: an_order(Desired.SERVE, generation=2)}
        plan = decide(a_snapshot(a_workload(replicas=1), (pod,), orders=orders), NOW)
        assert [one.pod.name for one in of(plan, Return)] == ["a"]
        assert (of(plan, SendOrder), of(plan, WriteRecord)) == ([], [])

    def test_a_pod_that_drains_though_nobody_wants_it_is_told_to_serve(self) -> None:
        pod = a_pod("a", ready=False)
        said = {pod.uid: a_report(state=PodState.DRAINING, generation=0)}
        plan = decide(a_snapshot(a_workload(replicas=1), (pod,), reports=said), NOW)
        assert [one.order.desired for one in of(plan, SendOrder)] == [Desired.SERVE]

    def test_a_pod_that_drains_by_an_order_that_was_lost_is_the_first_to_be_ordered_again(self) -> None:
        astray, ready = a_pod("a", ready=False), a_pod("b")
        said = {astray.uid: a_report(state=PodState.DRAINING, active=5), ready.uid: a_report()}
        plan = decide(a_snapshot(a_workload(replicas=1), (astray, ready), reports=said), NOW)
        assert [(one.pod.name, one.order.desired) for one in of(plan, SendOrder)] == [("a", Desired.DRAIN)]

    def test_a_pod_whose_order_the_store_lost_is_told_to_serve_all_the_same(self) -> None:
        pod = a_pod("a", **DRAINING)
        said = {pod.uid: a_report(state=PodState.DRAINING, generation=3)}
        plan = decide(a_snapshot(a_workload(replicas=1), (pod,), reports=said), NOW)
        assert [(one.order.desired, one.order.generation) for one in of(plan, SendOrder)] == [(Desired.SERVE, 4)]
        assert len(of(plan, Return)) == 1

    def test_a_released_pod_that_its_controller_passes_over_changes_places_with_the_unready_one(self) -> None:
        pods = (a_pod("a", released="clean", **DRAINING), a_pod("b", ready=False))
        snapshot = a_snapshot(a_workload(replicas=1), pods, orders={pods[0].uid: an_order()}, reports=reports(*pods))
        assert of(decide(snapshot, NOW), Return) == []
        plan = decide(replace(snapshot, requested=frozenset({pods[1].uid})), NOW)
        assert [one.pod.name for one in of(plan, Return)] == ["a"]
        assert drained_names(plan) == ["b"]


class TestRepair:
    def test_an_order_without_a_pin_gets_one_from_its_own_time(self) -> None:
        pod = a_pod("a")
        snapshot = a_snapshot(a_workload(replicas=0), (pod,), orders={pod.uid: an_order()}, reports=reports(pod))
        assert [(one.since, one.deadline_at) for one in of(decide(snapshot, NOW), Pin)] == [(NOW - 1, NOW + 74)]

    def test_an_idle_pod_may_answer_before_it_is_pinned(self) -> None:
        pod = a_pod("a")
        workload = a_workload(replicas=0, policy=a_policy(quiesce_s=0.0))
        order = an_order(quiesce_s=0.0, issued_at=NOW)
        snapshot = a_snapshot(workload, (pod,), orders={pod.uid: order}, reports=reports(pod))
        assert of(decide(snapshot, NOW + 0.1), Pin) == []
        assert len(of(decide(snapshot, NOW + 0.6), Pin)) == 1

    def test_a_lost_order_is_sent_again_above_the_generation_that_the_pod_remembers(self) -> None:
        pod = a_pod("a", **DRAINING)
        said = {pod.uid: a_report(state=PodState.DRAINING, generation=3)}
        plan = decide(a_snapshot(a_workload(replicas=0), (pod,), reports=said), NOW)
        assert [(one.order.desired, one.order.generation) for one in of(plan, SendOrder)] == [(Desired.DRAIN, 4)]


class TestOutOfReach:
    """Pods from before the annotation, or from while Ebbtide was away."""

    def test_a_pod_that_no_order_can_reach_is_not_held_for_nothing(self) -> None:
        pod = a_pod("a", floored=False)
        plan = decide(a_snapshot(a_workload(replicas=0), (pod,)), NOW)
        assert [one.pod.name for one in of(plan, Release)] == ["a"]
        assert (of(plan, SendOrder), of(plan, Pin)) == ([], [])

    def test_one_whose_library_speaks_all_the_same_is_drained(self) -> None:
        pod = a_pod("a", floored=False)
        plan = decide(a_snapshot(a_workload(replicas=0), (pod,), reports=reports(pod)), NOW)
        assert ([one.pod.name for one in of(plan, SendOrder)], of(plan, Release)) == (["a"], [])

    def test_a_pod_with_the_floor_that_never_spoke_is_waited_for(self) -> None:
        plan = decide(a_snapshot(a_workload(replicas=0), (a_pod("a"),)), NOW)
        assert (len(of(plan, SendOrder)), of(plan, Release)) == (1, [])

    def test_pods_that_can_be_told_go_first(self) -> None:
        pods = (a_pod("a", floored=False), a_pod("b"))
        plan = decide(a_snapshot(a_workload(replicas=1), pods, reports=reports(pods[1], active=3)), NOW)
        assert ([one.pod.name for one in of(plan, SendOrder)], of(plan, Release)) == (["b"], [])

    def test_a_condition_tells_how_many_there_are_and_what_to_do(self) -> None:
        pods = (a_pod("a", floored=False), a_pod("b"))
        status: dict[str, Any] = dict(of(decide(a_snapshot(a_workload(replicas=2), pods), NOW), WriteStatus)[0].status)
        (condition,) = [one for one in status["conditions"] if one["type"] == "Unprotected"]
        assert (condition["status"], condition["reason"]) == ("True", "OutOfReach")
        assert condition["message"].startswith("1 pod was made without the floor")
        assert "kubectl rollout restart deployment/orders" in condition["message"]


class TestDeleted:
    def test_a_pod_that_missed_its_signal_is_told_to_drain_and_leave(self) -> None:
        pod = a_pod("a", terminating=True)
        plan = decide(a_snapshot(a_workload(replicas=1), (pod,), reports=reports(pod)), NOW)
        assert [(one.order.desired, one.order.leave) for one in of(plan, SendOrder)] == [(Desired.DRAIN, True)]

    @pytest.mark.parametrize("state", [PodState.QUIESCING, PodState.DRAINED, PodState.EXITING])
    def test_a_pod_that_knows_is_left_alone(self, state: PodState) -> None:
        pod = a_pod("a", terminating=True)
        plan = decide(a_snapshot(a_workload(replicas=1), (pod,), reports=reports(pod, state=state)), NOW)
        assert of(plan, SendOrder) == []

    def test_it_is_told_once(self) -> None:
        pod = a_pod("a", terminating=True)
        told = a_snapshot(a_workload(replicas=1), (pod,), reports=reports(pod), orders={pod.uid: an_order()})
        assert of(decide(told, NOW), SendOrder) == []

    def test_a_pod_that_was_never_heard_is_not_told(self) -> None:
        plan = decide(a_snapshot(a_workload(replicas=1), (a_pod("a", terminating=True),)), NOW)
        assert of(plan, SendOrder) == []


class TestHistory:
    def test_the_end_of_a_pod_that_failed_in_mid_drain_is_written_down_while_its_object_stays(self) -> None:
        failed = a_pod("failed", draining_since=NOW - 10, deadline_at=NOW + 60, finished=True)
        order = an_order(issued_at=NOW - 10)
        said = {failed.uid: a_report(live=False, state=PodState.EXITING, generation=1, active=3, forced=True)}
        snapshot = a_snapshot(a_workload(replicas=0), (failed,), orders={failed.uid: order}, reports=said)
        plan = decide(snapshot, NOW)
        (written,) = of(plan, WriteRecord)
        assert (written.record.outcome, written.record.started_at, written.record.ended_at) == (
            Outcome.ABANDONED,
            NOW - 10,
            NOW,
        )
        assert of(plan, Forget) == [Forget("shop", failed.uid)]
        later = decide(replace(snapshot, orders={}, reports={}, recent=(written.record,)), NOW + 86400)
        assert [one for kind in (SendOrder, WriteRecord, Forget) for one in of(later, kind)] == []

    @pytest.mark.parametrize(
        ("report", "now", "outcome"),
        [
            (None, NOW, Outcome.LOST),
            (None, NOW + 80, Outcome.UNKNOWN),
            (a_report(live=False, state=PodState.DRAINED, generation=1), NOW, Outcome.CLEAN),
            (a_report(live=False, state=PodState.DRAINED, generation=1, forced=True), NOW, Outcome.CANCELLED),
        ],
    )
    def test_the_end_of_a_pod_that_is_gone_is_written_down_and_then_forgotten(
        self, report: Any, now: float, outcome: Outcome
    ) -> None:
        said = {} if report is None else {"gone": report}
        plan = decide(a_snapshot(a_workload(replicas=0), (), orders={"gone": an_order()}, reports=said), now)
        chain = [one for one in plan.actions if isinstance(one, WriteRecord | Forget)]
        assert [type(one) for one in chain] == [WriteRecord, Forget]
        assert of(plan, WriteRecord)[0].record.outcome is outcome

    def test_an_answer_to_an_earlier_order_is_not_the_end_of_this_one(self) -> None:
        said = {"gone": a_report(live=False, state=PodState.DRAINED, generation=1)}
        plan = decide(
            a_snapshot(a_workload(replicas=0), (), orders={"gone": an_order(generation=3)}, reports=said), NOW
        )
        assert of(plan, WriteRecord)[0].record.outcome is Outcome.LOST

    def test_what_the_pod_said_of_its_drain_goes_into_the_history(self) -> None:
        said = {"gone": a_report(live=False, state=PodState.EXITING, generation=1, drain={"took_s": 3.2})}
        plan = decide(a_snapshot(a_workload(replicas=0), (), orders={"gone": an_order()}, reports=said), NOW)
        assert of(plan, WriteRecord)[0].record.drain == {"took_s": 3.2}

    def test_a_record_that_was_written_before_a_crash_is_not_written_again(self) -> None:
        order = an_order()
        written = DrainRecord(
            pod="a", uid="gone", outcome=Outcome.LOST, reason="", started_at=order.issued_at, ended_at=NOW - 0.5
        )
        plan = decide(a_snapshot(a_workload(replicas=0), (), orders={"gone": order}, recent=(written,)), NOW)
        assert (of(plan, WriteRecord), len(of(plan, Forget))) == ([], 1)

    def test_a_return_that_was_recorded_before_a_crash_is_not_recorded_again(self) -> None:
        pod, order = a_pod("a", **DRAINING), an_order()
        written = DrainRecord(
            pod="a", uid=pod.uid, outcome=Outcome.RETURNED, reason="", started_at=order.issued_at, ended_at=NOW - 0.5
        )
        plan = decide(a_snapshot(a_workload(replicas=1), (pod,), orders={pod.uid: order}, recent=(written,)), NOW)
        assert (of(plan, WriteRecord), len(of(plan, SendOrder))) == ([], 1)


class TestNotManaged:
    @pytest.mark.parametrize("changes", [{"policy": a_policy(mode=Mode.OFF)}, {"terminating": True}])
    def test_everything_is_taken_back(self, changes: dict[str, Any]) -> None:
        pod = a_pod("a", **DRAINING)
        plan = decide(a_snapshot(a_workload(replicas=0, **changes), (pod,), orders={pod.uid: an_order()}), NOW)
        assert [one.order.desired for one in of(plan, SendOrder)] == [Desired.SERVE]
        assert len(of(plan, Return)) == 1

    def test_the_label_stays_until_the_pod_knows_that_it_serves(self) -> None:
        pod = a_pod("a")
        workload = a_workload(policy=a_policy(mode=Mode.OFF))
        orders = {pod.uid: an_order(Desired.SERVE, generation=2)}
        said = a_report(state=PodState.DRAINING, generation=1)
        deaf = a_snapshot(workload, (pod,), orders=orders, reports={pod.uid: said})
        assert of(decide(deaf, NOW), Adopt) == []
        for heard in (a_report(generation=2), replace(said, live=False)):
            plan = decide(replace(deaf, reports={pod.uid: heard}), NOW)
            assert [one.label for one in of(plan, Adopt)] == [""]

    def test_the_label_stays_while_the_store_cannot_take_the_order_to_serve(self) -> None:
        pod = a_pod("a", **DRAINING)
        workload = a_workload(policy=a_policy(mode=Mode.OFF))
        plan = decide(a_snapshot(workload, (pod,), orders={pod.uid: an_order()}, store_ok=False), NOW)
        assert (of(plan, Adopt), of(plan, SendOrder)) == ([], [])

    def test_an_outage_does_not_repeat_the_removal_of_the_status(self) -> None:
        workload = a_workload(policy=a_policy(mode=Mode.OFF))
        gone = a_snapshot(workload, (), status=None, store_ok=False)
        assert of(decide(gone, NOW), RemoveStatus) == []
        assert len(of(decide(replace(gone, store_ok=True), NOW), RemoveStatus)) == 1

    def test_a_mistake_is_told_once_and_stays_readable(self) -> None:
        workload = a_workload(policy=a_policy(mode=Mode.OFF), problems=(Problem("ebbtide.dev/drain", "must be x"),))
        snapshot = a_snapshot(workload, ())
        plan = decide(snapshot, NOW)
        assert (len(of(plan, Notify)), len(of(plan, WriteStatus)), of(plan, RemoveStatus)) == (1, 1, [])
        again = decide(replace(snapshot, status=of(plan, WriteStatus)[0].status, status_at=NOW), NOW + 60)
        assert again.actions == ()

    def test_floor_labels_pods_and_orders_nothing(self) -> None:
        pods = (a_pod("a"), a_pod("b", label=""))
        plan = decide(a_snapshot(a_workload(replicas=0, policy=a_policy(mode=Mode.FLOOR)), pods), NOW)
        assert [one.label for one in of(plan, Adopt)] == ["floor", "floor"]
        assert of(plan, SendOrder) == []


class TestWithoutStoreOrLead:
    def test_a_follower_does_nothing(self) -> None:
        assert decide(a_snapshot(a_workload(replicas=0), (a_pod("a"),), epoch=0), NOW).actions == ()

    def test_an_outage_starts_nothing_and_ends_what_is_due(self) -> None:
        pods = (a_pod("a", **DRAINING), a_pod("b"))
        snapshot = a_snapshot(a_workload(replicas=0), pods, orders={pods[0].uid: an_order()}, store_ok=False)
        plan = decide(snapshot, NOW + 75)
        assert [one.pod.name for one in of(plan, Release)] == ["a"]
        assert [one for kind in (SendOrder, PublishPhase, WriteRecord, Forget) for one in of(plan, kind)] == []
        status: dict[str, Any] = dict(of(plan, WriteStatus)[0].status)
        degraded = [one for one in status["conditions"] if one["type"] == "Degraded"]
        assert degraded[0]["status"] == "True"

    def test_two_sets_share_one_budget(self) -> None:
        sets = (a_set("old", 0), a_set("new", 0, revision="2"))
        pods = tuple(a_pod(f"{owner}-{n}", owner_uid=owner) for owner in ("old", "new") for n in range(3))
        workload = a_workload(replicas=4, sets=sets, max_surge=1, max_unavailable=1)
        plan = decide(a_snapshot(workload, pods, reports=reports(*pods)), NOW)
        assert len(drained_names(plan)) == 2
