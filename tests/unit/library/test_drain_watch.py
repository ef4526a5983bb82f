"""The watch over a drain, against every history that the machine can go through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebbtide.lifecycle import drainwatch
from ebbtide.lifecycle.drainwatch import DrainWatch
from ebbtide.lifecycle.machine import (
    DrainRequested,
    Durations,
    Event,
    Machine,
    Ordered,
    Reason,
    Source,
    Started,
    Tick,
    UndrainRequested,
)
from ebbtide.protocol import Desired, Outcome, PodState
from ebbtide.tasks.registry import Registry
from tests.unit.library.pod import Pod, order

DURATIONS = Durations(5.0, 60.0, 10.0)
events = st.one_of(
    st.just(DrainRequested(Reason(Source.API))),
    st.just(DrainRequested(Reason(Source.SIGNAL), Durations(0.0, 0.0, 1.0), leave=True)),
    st.just(UndrainRequested()),
    st.builds(lambda generation: Ordered(order(generation)), st.integers(1, 5)),
    st.builds(lambda generation: Ordered(order(generation, desired=Desired.SERVE)), st.integers(1, 5)),
    st.floats(0.0, 40.0),
    st.sampled_from(["begin", "finish"]),
)


class Watched(Pod):
    """A pod whose every step is shown to a watch, which reads the pod's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(Machine(defaults=DURATIONS))
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: 1e9 + self.now)
        monkeypatch.setattr(drainwatch, "time", clock)
        self.watch = DrainWatch(Registry(lambda: None))

    def tell(self, event: Event) -> list[Any]:
        effects = super().tell(event)
        self.watch.observe(self.machine)
        self.watch.settle()
        return effects

    def live_through(self, happening: Any) -> None:
        match happening:
            case float():
                self.pass_time(happening)
            case "begin":
                self.active += 1 if self.open else 0
            case "finish" if self.active:
                self.finish()
            case "finish":
                self.tell(Tick())
            case _:
                self.tell(happening)


@given(history=st.lists(events, max_size=25))
@settings(max_examples=150)
def test_whatever_happens_the_states_add_up_and_the_outcome_is_the_machines(history: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        pod = Watched(monkeypatch)
        pod.tell(Started())
        for happening in history:
            pod.live_through(happening)
            report = pod.watch.report()
            machine = pod.machine
            if machine.draining:
                assert report is not None
            if report is None:
                continue
            assert sum(phase.took_s for phase in report.phases) == pytest.approx(report.took_s)
            assert len({phase.state for phase in report.phases}) == len(report.phases)
            under_way = machine.draining and machine.state not in {PodState.DRAINED, PodState.EXITING}
            assert (report.outcome is None) == under_way
            if machine.state in {PodState.DRAINED, PodState.EXITING}:
                assert report.outcome is (Outcome.CANCELLED if machine.forced else Outcome.CLEAN)
                assert report.reason == str(machine.reason)


def test_a_drain_that_is_taken_back_says_so_until_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Watched(monkeypatch)
    pod.tell(Started())
    pod.active = 1
    pod.tell(DrainRequested(Reason(Source.API, "first")))
    pod.pass_time(8.0)
    pod.tell(UndrainRequested())
    pod.pass_time(100.0)
    returned = pod.watch.report()
    assert returned is not None
    assert (returned.outcome, returned.took_s, returned.started_at) == (Outcome.RETURNED, 8.0, 1e9 + 1000.0)
    assert [(phase.state, phase.took_s) for phase in returned.phases] == [("Quiescing", 5.0), ("Draining", 3.0)]
    pod.tell(DrainRequested(Reason(Source.API, "second")))
    second = pod.watch.report()
    assert second is not None
    assert (second.reason, second.outcome) == ("api: second", None)
