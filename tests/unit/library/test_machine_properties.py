"""What holds for every history of a pod, however its orders, signals, tasks and clock interleave."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ebbtide.lifecycle.machine import (
    COLLECT_S,
    DrainRequested,
    Durations,
    Machine,
    Ordered,
    Reason,
    Source,
    Started,
    Tick,
    UndrainRequested,
    next_deadline,
)
from ebbtide.protocol import DRAIN_STATES, Desired, PodState
from tests.unit.library.pod import Pod, order

LATE = {PodState.DRAINING, PodState.CANCELLING, PodState.DRAINED, PodState.EXITING}
seconds = st.sampled_from([0.0, 0.5, 1.0, 5.0, 30.0, 100.0])
durations = st.builds(Durations, seconds, seconds, seconds)
sources = st.sampled_from([Source.API, Source.SIGNAL, Source.PRESTOP])


class Histories(RuleBasedStateMachine):
    """Random histories against a few sentences about them."""

    def __init__(self) -> None:
        super().__init__()
        self.pod = Pod(Machine(defaults=Durations(2, 20, 5)))
        self.generation = 0
        self.promised_by: float | None = None
        """The earliest end that any order or request of the current drain promised."""
        self.first_reason: Reason | None = None
        self.admitted = 0
        self.ended = 0
        self.deletion = False

    def tell(self, event: Ordered | DrainRequested | UndrainRequested | Tick | Started) -> None:
        before = self.pod.machine
        self.pod.tell(event)
        self._watch(before)

    def _watch(self, before: Machine) -> None:
        after = self.pod.machine
        if before.draining and not after.draining:
            assert not before.forced, "served again after it had cancelled"
            assert not self.deletion, "served again although its deletion had come"
            self.promised_by = self.first_reason = None
        if before.draining and after.draining:
            assert after.deadline_at <= before.deadline_at, "a deadline moved away"
            assert after.reason == before.reason

    def promise(self, spend: Durations) -> None:
        end = self.pod.now + spend.budget_s
        self.promised_by = end if self.promised_by is None else min(self.promised_by, end)

    @rule()
    def start(self) -> None:
        self.tell(Started())

    @rule(spend=durations, stale=st.booleans(), cancel=st.booleans())
    def order_drain(self, spend: Durations, stale: bool, cancel: bool) -> None:
        if not stale or not self.generation:
            self.generation += 1
            if self.pod.state is not PodState.EXITING:
                self.promise(Durations(0, 0, spend.cancel_grace_s) if cancel else spend)
                self.first_reason = self.first_reason or Reason(Source.ORDER)
        desired = Desired.CANCEL if cancel else Desired.DRAIN
        self.tell(
            Ordered(
                order(
                    self.generation,
                    desired=desired,
                    quiesce_s=spend.quiesce_s,
                    drain_timeout_s=spend.drain_timeout_s,
                    cancel_grace_s=spend.cancel_grace_s,
                )
            )
        )

    @rule()
    def order_serve(self) -> None:
        self.generation += 1
        self.tell(Ordered(order(self.generation, desired=Desired.SERVE)))

    @rule(source=sources, spend=st.none() | durations)
    def request_drain(self, source: Source, spend: Durations | None) -> None:
        if self.pod.state is not PodState.EXITING:
            if spend is not None or not self.pod.machine.draining:
                self.promise(spend or self.pod.machine.defaults)
            self.first_reason = self.first_reason or Reason(source)
            self.deletion |= source is not Source.API
        self.tell(DrainRequested(Reason(source), spend))

    @rule()
    def request_undrain(self) -> None:
        self.tell(UndrainRequested())

    @precondition(lambda self: self.pod.open or self.pod.active)
    @rule(tasks=st.integers(1, 5))
    def admit(self, tasks: int) -> None:
        # With intake closed these are children of live tasks.
        self.pod.active += tasks
        self.admitted += tasks

    @precondition(lambda self: self.pod.active)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        tasks = data.draw(st.integers(1, self.pod.active))
        self.pod.active -= tasks
        self.ended += tasks
        self.tell(Tick())

    @rule(seconds=seconds)
    def pass_time(self, seconds: float) -> None:
        end = self.pod.now + seconds
        while (at := next_deadline(self.pod.machine)) is not None and at <= end:
            self.pod.now = max(self.pod.now, at)
            self.tell(Tick())
        self.pod.now = end
        self.tell(Tick())

    @rule(seconds=seconds)
    def oversleep(self, seconds: float) -> None:
        """The process was suspended: deadlines passed without a tick."""
        self.pod.now += seconds
        self.tell(Tick())

    @invariant()
    def counts_conserve(self) -> None:
        assert self.admitted == self.ended + self.pod.active

    @invariant()
    def ready_means_serving(self) -> None:
        assert self.pod.ready == (self.pod.state is PodState.SERVING)

    @invariant()
    def intake_is_closed_from_draining_on_and_open_before(self) -> None:
        assert self.pod.open == (self.pod.state not in LATE)

    @invariant()
    def the_gate_never_opens_early(self) -> None:
        if self.pod.state in {PodState.DRAINED, PodState.EXITING} and self.pod.active:
            assert self.pod.now >= self.pod.machine.deadline_at
            assert self.pod.machine.forced

    @invariant()
    def every_drain_ends_by_the_earliest_promise(self) -> None:
        if self.promised_by is not None and self.pod.now >= self.promised_by:
            assert self.pod.state in {PodState.DRAINED, PodState.EXITING}

    @invariant()
    def the_first_reason_wins(self) -> None:
        if self.pod.machine.draining:
            assert self.pod.machine.reason is not None
            assert self.first_reason is not None
            assert self.pod.machine.reason.source is self.first_reason.source

    @invariant()
    def a_drained_pod_leaves_after_its_deletion_and_only_then_or_uncollected(self) -> None:
        if self.pod.state is PodState.DRAINED:
            assert not self.deletion
            exit_at = self.pod.machine.exit_at
            assert exit_at is None or self.pod.now < exit_at <= self.pod.now + 300 + COLLECT_S
        if self.pod.state is PodState.EXITING:
            assert self.pod.exits == 1

    @invariant()
    def cancels_at_most_once_and_only_when_forced(self) -> None:
        assert self.pod.cancels == int(self.pod.machine.forced)

    @invariant()
    def the_parts_of_a_drain_follow_each_other(self) -> None:
        machine = self.pod.machine
        assert machine.intake_until <= machine.cancel_at <= machine.deadline_at

    @invariant()
    def a_drain_that_can_move_has_a_deadline(self) -> None:
        if self.pod.state in DRAIN_STATES - {PodState.DRAINED}:
            at = next_deadline(self.pod.machine)
            assert at is not None
            assert at > self.pod.now or self.pod.active == 0


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=25)
TestHistories = Histories.TestCase
