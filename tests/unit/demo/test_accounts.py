from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from examples.orders.orders.accounts import (
    LATE_S,
    Attempt,
    Execution,
    Fate,
    OrderRecord,
    Outcome,
    count_fates,
    fate,
    in_flight,
)

times = st.floats(0, 1000)
executions = st.builds(
    Execution, pod=st.sampled_from(["pod-1", "pod-2", "pod-3"]), started_at=times, completed_at=st.none() | times
)
attempts = st.builds(Attempt, at=times, ended_at=times, outcome=st.sampled_from(Outcome))
orders = st.builds(
    OrderRecord,
    id=st.uuids().map(str),
    deployment=st.sampled_from(["orders-plain", "orders-managed"]),
    work_s=st.floats(0.2, 20),
    sent_at=times,
    attempts=st.lists(attempts, max_size=4),
    executions=st.dictionaries(st.sampled_from("abcd"), executions, max_size=3),
    settled_at=st.none() | times,
)


def order(*outcomes: Outcome, completed: int = 0, settled_at: float | None = 10.0) -> OrderRecord:
    done = {str(number): Execution("pod", 1.0, 2.0) for number in range(completed)}
    return OrderRecord("1", "orders", 3.0, 0.0, [Attempt(0.0, 1.0, outcome) for outcome in outcomes], done, settled_at)


@given(st.lists(orders, max_size=20), times)
def test_every_order_is_in_exactly_one_class(records: list[OrderRecord], now: float) -> None:
    counts = count_fates(records, now)
    assert set(counts) == set(Fate)
    assert sum(counts.values()) == len(records)


@given(orders)
def test_every_settled_order_is_decided_in_the_end(record: OrderRecord) -> None:
    decided = fate(record, 1e9) is not Fate.OPEN
    assert decided == (bool(record.completions) or (record.settled_at is not None and bool(record.attempts)))


@given(orders, times, times)
def test_a_decided_class_never_changes_by_waiting(record: OrderRecord, now: float, later: float) -> None:
    if fate(record, now) is not Fate.OPEN:
        assert fate(record, now + later) is fate(record, now)


@given(orders)
def test_a_record_survives_the_trip_as_json(record: OrderRecord) -> None:
    assert OrderRecord.from_json(record.to_json()) == record


@given(st.lists(orders, max_size=20), times)
def test_no_more_is_in_flight_than_was_begun(records: list[OrderRecord], at: float) -> None:
    begun = sum(len(record.executions) for record in records)
    assert sum(in_flight(records, at).values()) <= begun


def test_one_completion_is_finished_even_where_the_answer_was_cut_off() -> None:
    assert fate(order(Outcome.CUT, completed=1), 1e9) is Fate.FINISHED


def test_two_completions_are_a_duplicate() -> None:
    assert fate(order(Outcome.ANSWERED, completed=2), 1e9) is Fate.DUPLICATED


def test_a_cut_order_is_lost_once_its_pod_can_no_longer_complete_it() -> None:
    cut = order(Outcome.REFUSED, Outcome.CUT)
    assert fate(cut, 10.0 + 3.0 + LATE_S) is Fate.OPEN
    assert fate(cut, 10.1 + 3.0 + LATE_S) is Fate.LOST


def test_an_answer_without_a_completion_is_a_loss() -> None:
    assert fate(order(Outcome.ANSWERED), 10.0) is Fate.LOST


def test_an_order_that_was_only_refused_is_turned_away() -> None:
    assert fate(order(Outcome.REFUSED, Outcome.REFUSED), 10.0) is Fate.TURNED_AWAY


def test_a_cut_execution_is_in_flight_until_its_client_was_cut_off() -> None:
    record = order(Outcome.CUT, settled_at=10.0)
    record.executions["a"] = Execution("pod", 5.0)
    assert in_flight([record], 4.9) == {}
    assert in_flight([record], 9.9) == {"pod": 1}
    assert in_flight([record], 10.0) == {}
