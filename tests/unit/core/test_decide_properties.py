"""The rules of the planner against a model of the rest of the world, whatever happens in whatever order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ebbtide.protocol import Desired
from ebbtide_operator.core.decide import SLACK_S
from ebbtide_operator.core.fleet import survey
from ebbtide_operator.core.model import Mode, Plan, Release, SendOrder
from tests.unit.core.fleet_model import World

picks = st.integers(0, 99)


class Fleet(RuleBasedStateMachine):
    """Random histories of a Deployment with two ReplicaSets, its pods, the store and an operator that may be killed."""

    @initialize(replicas=st.integers(1, 4), may_delete=st.booleans())
    def start(self, replicas: int, may_delete: bool) -> None:
        self.world = World(may_delete=may_delete)
        self.world.add_set("old", replicas, "1")
        self.world.add_set("new", 0, "2")
        self.world.live()

    def _pick(self, number: int) -> str | None:
        pods = sorted(self.world.pods)
        return pods[number % len(pods)] if pods else None

    @rule(name=st.sampled_from(["rs-old", "rs-new"]), replicas=st.integers(0, 4), unseen=st.booleans())
    def resize(self, name: str, replicas: int, unseen: bool) -> None:
        self.world.resize(name, replicas, unseen=unseen)

    @rule(name=st.sampled_from(["rs-old", "rs-new"]))
    def the_watch_of_the_replica_sets_catches_up(self, name: str) -> None:
        self.world.see(name)

    @rule()
    def control(self) -> None:
        self.world.control()

    @rule()
    def pods_live(self) -> None:
        self.world.live()

    @rule(number=picks, tasks=st.integers(0, 3), stubborn=st.booleans())
    def work(self, number: int, tasks: int, stubborn: bool) -> None:
        uid = self._pick(number)
        if uid is not None and self.world.processes[uid].order is None:
            self.world.processes[uid].tasks = tasks
            self.world.processes[uid].stubborn = stubborn

    @rule(number=picks)
    def finish(self, number: int) -> None:
        uid = self._pick(number)
        if uid is not None:
            self.world.processes[uid].tasks = 0

    @rule(number=picks)
    def pod_dies(self, number: int) -> None:
        uid = self._pick(number)
        if uid is not None:
            self.world.remove(uid)

    @rule(number=picks, silent=st.booleans())
    def pod_falls_silent(self, number: int, silent: bool) -> None:
        uid = self._pick(number)
        if uid is not None:
            self.world.processes[uid].silent = silent

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(up=st.booleans())
    def store(self, up: bool) -> None:
        self.world.store_ok = up

    @rule(may=st.booleans())
    def the_operators_right_to_delete(self, may: bool) -> None:
        self.world.may_delete = may

    @rule(up=st.booleans())
    def webhook(self, up: bool) -> None:
        self.world.webhook_up = up

    @rule()
    def store_is_made_anew(self) -> None:
        self.world.lose_store()

    @rule(mode=st.sampled_from(Mode))
    def opt(self, mode: Mode) -> None:
        self.world.policy = replace(self.world.policy, mode=mode)

    @rule()
    def reconcile(self) -> None:
        plan = self._checked_plan()
        self.world.apply(plan)
        # What was written is a part of the next snapshot: a record shows up in the status.
        for _ in range(2):
            self.world.apply(self.world.plan())
        again = self.world.plan()
        assert not again.actions, f"an unchanged world gives an empty plan, not {again.actions}"

    @rule(most=st.integers(0, 4))
    def operator_is_killed_half_way(self, most: int) -> None:
        self.world.apply(self._checked_plan(), most)

    @rule()
    def apply_twice(self) -> None:
        plan = self._checked_plan()
        self.world.apply(plan)
        once = (dict(self.world.pods), dict(self.world.orders), self.world.status)
        self.world.apply(plan)
        assert once == (dict(self.world.pods), dict(self.world.orders), self.world.status)

    def _checked_plan(self) -> Plan:
        world = self.world
        plan = world.plan()
        before = survey(world.snapshot())
        starts = [
            action
            for action in plan.actions
            if isinstance(action, SendOrder)
            and action.order.desired is Desired.DRAIN
            and action.pod.uid not in {one.pod.uid for one in before.draining}
        ]
        spent = sum(one.spends_budget for one in before.members)
        back = sum(one.spends_budget for one in before.returning)
        assert not starts or spent - back + len(starts) <= before.limit, "never more than the budget"
        _check_that_they_are_too_many(world, plan)
        return plan

    @precondition(lambda self: self.world.store_ok)
    @rule()
    def no_drain_outlives_its_deadline(self) -> None:
        world = self.world
        world.apply(world.plan())
        for pod in world.pods.values():
            if pod.deadline_at is not None and world.now >= pod.deadline_at + SLACK_S:
                member = next(one for one in survey(world.snapshot()).members if one.pod.uid == pod.uid)
                assert pod.released is not None or not member.draining

    @invariant()
    def a_pin_never_forgets_the_users_cost(self) -> None:
        if not hasattr(self, "world"):
            return
        for uid, pod in self.world.pods.items():
            if pod.original_cost is None:
                assert pod.deletion_cost == self.world.user_costs[uid]

    def teardown(self) -> None:
        """Whatever happened, in the end everything is as specified and nothing is left behind."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.see()
        world.store_ok = True
        for process in world.processes.values():
            process.silent = False
        world.settle()
        for one in world.sets.values():
            assert len(world.active(one.uid)) == one.replicas
        for uid, pod in world.pods.items():
            assert (pod.draining_since, pod.deadline_at, pod.released, pod.original_cost) == (None, None, None, None)
            assert pod.deletion_cost == world.user_costs[uid]
            assert world.processes[uid].order is None, "every pod that stays serves"
        assert world.orders.keys() <= world.pods.keys()
        assert all(order.desired is Desired.SERVE for order in world.orders.values())


def _check_that_they_are_too_many(world: World, plan: Plan) -> None:
    """Compare who is taken with the ReplicaSets as they are, whatever the operator has seen of them."""
    taken = {
        action.pod.uid
        for action in plan.actions
        if isinstance(action, Release) or (isinstance(action, SendOrder) and action.order.desired is not Desired.SERVE)
    }
    for facts in survey(world.truth()).sets:
        assert not taken & {one.pod.uid for one in facts.returning}, "nobody goes who is wanted back"
        new = taken & {one.pod.uid for one in facts.candidates}
        assert len(new) <= max(0, facts.missing), "only surplus pods are taken"


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=300, stateful_step_count=40, suppress_health_check=list(HealthCheck))


def _two_of_three_drain() -> World:
    world = World()
    world.add_set("old", 3, "1")
    for process in world.processes.values():
        process.tasks = 2
    world.live()
    world.resize("rs-old", 1)
    for _ in range(4):
        world.apply(world.plan())
        world.live()
    assert sum(process.order is not None for process in world.processes.values()) == 2
    return world


def _plan_again_and_again(world: World) -> None:
    """Let the operator work while no pod gets to read anything."""
    for _ in range(4):
        world.apply(world.plan())


@pytest.mark.parametrize("most", range(8))
@pytest.mark.parametrize("mode", [Mode.OFF, Mode.FLOOR])
def test_opting_out_returns_every_pod_to_service_wherever_it_is_cut_short(mode: Mode, most: int) -> None:
    world = _two_of_three_drain()
    world.policy = replace(world.policy, mode=mode)
    world.apply(world.plan(), most)
    _plan_again_and_again(world)
    world.live()
    world.resize("rs-old", 3)
    world.settle()
    assert [process.order for process in world.processes.values()] == [None] * 3
    assert not any(pod.original_cost is not None or pod.draining_since for pod in world.pods.values())


@pytest.mark.parametrize("most", range(8))
def test_opting_out_while_the_store_is_away_still_reaches_every_pod(most: int) -> None:
    world = _two_of_three_drain()
    world.store_ok = False
    world.policy = replace(world.policy, mode=Mode.OFF)
    world.apply(world.plan(), most)
    _plan_again_and_again(world)
    world.store_ok = True
    world.resize("rs-old", 3)
    world.settle()
    assert [process.order for process in world.processes.values()] == [None] * 3


@pytest.mark.parametrize("most", range(8))
def test_a_rollback_after_the_store_was_lost_returns_every_pod_to_service(most: int) -> None:
    world = _two_of_three_drain()
    world.lose_store()
    world.resize("rs-old", 3)
    world.apply(world.plan(), most)
    _plan_again_and_again(world)
    world.settle()
    assert [process.order for process in world.processes.values()] == [None] * 3


@pytest.mark.parametrize("most", range(12))
def test_each_end_is_written_down_once_wherever_the_operator_is_killed(most: int) -> None:
    world = _two_of_three_drain()
    for uid in [uid for uid, process in world.processes.items() if process.order is not None]:
        world.remove(uid)
    world.resize("rs-old", 0)
    world.apply(world.plan(), most)
    world.now += 1.0
    world.settle()
    ends = [(record.uid, record.started_at) for record in world.records]
    assert len(ends) == len(set(ends)) == 3
