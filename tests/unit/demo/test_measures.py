from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.history import Removal
from demo.measures import interrupted_for_nothing, percentile, signal_latencies


def removal(pod: str, at: float) -> Removal:
    return Removal(pod, "old", None, at, at + 1)


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(1, 100))
def test_percentile_is_one_of_the_values_and_covers_its_share(values: list[float], percent: float) -> None:
    result = percentile(values, percent)
    assert result in values
    assert sum(value <= result for value in values) * 100 >= percent * len(values) - 1e-9


@given(st.lists(st.floats(0, 100), min_size=1))
def test_percentiles_grow(values: list[float]) -> None:
    low, high = percentile(values, 50), percentile(values, 99)
    assert low is not None
    assert high is not None
    assert low <= high <= max(values)


def test_percentile_of_nothing_is_nothing() -> None:
    assert percentile([], 50) is None


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_percentile_refuses_what_is_no_percentage(percent: float) -> None:
    with pytest.raises(ValueError, match="percent: must be"):
        percentile([1.0], percent)


def test_a_signal_answers_the_last_decision_before_it() -> None:
    decided = {"a": [10.0, 20.0], "b": [10.0]}
    told = {"a": [10.5, 20.25, 25.0], "b": [30.0], "c": [1.0]}
    assert signal_latencies(decided, told) == [0.5, 0.25, 20.0]


def test_a_pod_that_was_never_told_has_no_latency() -> None:
    assert signal_latencies({"a": [10.0]}, {"a": [5.0]}) == []


moments = st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(0, 100), max_size=4))


@given(moments, moments)
def test_no_decision_has_more_than_one_latency(decided: dict[str, list[float]], told: dict[str, list[float]]) -> None:
    latencies = signal_latencies(decided, told)
    assert all(latency >= 0 for latency in latencies)
    assert len(latencies) <= sum(len(times) for times in decided.values())


loads = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), min_size=1)


@given(loads, st.data())
def test_pods_taken_together_cost_what_they_had_beyond_the_idlest(load: dict[str, int], data: st.DataObject) -> None:
    taken = data.draw(st.lists(st.sampled_from(sorted(load)), unique=True))
    result = interrupted_for_nothing(
        [removal(pod, 5.0) for pod in taken], lambda _: load, lambda _: load, surplus=len(taken)
    )
    assert result == sum(load[pod] for pod in taken) - sum(sorted(load.values())[: len(taken)])
    assert result >= 0


@given(loads, st.data())
def test_without_surplus_every_order_on_a_taken_pod_counts(load: dict[str, int], data: st.DataObject) -> None:
    taken = data.draw(st.lists(st.sampled_from(sorted(load)), unique=True))
    removals = [removal(pod, 5.0 + 7 * number) for number, pod in enumerate(taken)]
    assert interrupted_for_nothing(removals, lambda _: load, lambda _: load, surplus=0) == sum(
        load[pod] for pod in taken
    )


def test_pods_taken_one_after_another_are_judged_each_at_its_moment() -> None:
    load = {1.0: {"a": 3, "b": 0, "c": 5}, 10.0: {"a": 1, "b": 4, "c": 2}}
    removals = [removal("a", 1.0), removal("b", 10.0)]
    # At 1.0 the idlest is b (0); at 10.0 a is gone, and of b and c the idlest is c (2).
    assert interrupted_for_nothing(removals, lambda _: "abc", lambda at: load[at], surplus=2) == 3 + 2


def test_a_pod_beyond_the_surplus_counts_in_full() -> None:
    load = {"a": 1, "b": 2, "c": 3}
    removals = [removal("a", 1.0), removal("b", 10.0)]
    assert interrupted_for_nothing(removals, lambda _: "abc", lambda _: load, surplus=1) == 2
