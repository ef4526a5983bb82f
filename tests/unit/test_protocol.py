import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide import protocol
from ebbtide.protocol import DrainRecord, Keys, Leader, Order, Phase, RecordError, Report, Request

names = st.text(min_size=1, max_size=20)
durations = st.floats(min_value=0, max_value=1e6, allow_nan=False)
counts = st.integers(min_value=0, max_value=2**53)
tallies = st.dictionaries(names, counts, max_size=4)

orders = st.builds(
    Order,
    desired=st.sampled_from(protocol.Desired),
    generation=counts,
    epoch=counts,
    reason=names,
    quiesce_s=durations,
    drain_timeout_s=durations,
    cancel_grace_s=durations,
)
reports = st.builds(
    Report,
    state=st.sampled_from(protocol.PodState),
    sequence=counts,
    boot_id=names,
    generation=counts,
    active=counts,
    oldest_age_s=durations,
    eta_s=st.none() | durations,
    tally=tallies,
    forced=st.booleans(),
    phase_revision=counts,
)
phases = st.builds(Phase, phase=st.sampled_from(protocol.RolloutPhase), revision=names, reason=names, pods=tallies)
records = st.builds(
    DrainRecord,
    pod=names,
    uid=names,
    outcome=st.sampled_from(protocol.Outcome),
    reason=names,
    tally=tallies,
    started_at=durations,
)
every = st.one_of(
    orders, reports, phases, records, st.builds(Request, by=names, at=durations), st.builds(Leader, identity=names)
)


@given(every)
def test_a_record_survives_its_encoding(record: Any) -> None:
    assert type(record).decode(record.encode()) == record


@given(every)
def test_unknown_fields_of_a_newer_minor_version_are_kept(record: Any) -> None:
    document = json.loads(record.encode()) | {"from_the_future": {"a": [1]}}
    again = type(record).decode(json.dumps(document).encode())
    assert json.loads(again.encode())["from_the_future"] == {"a": [1]}


@given(st.binary(max_size=200), st.sampled_from([Order, Report, Phase, DrainRecord, Request, Leader]))
def test_arbitrary_bytes_are_a_record_error_or_a_record(data: bytes, kind: Any) -> None:
    try:
        kind.decode(data)
    except RecordError as error:
        assert str(error).startswith(kind.kind)


@given(
    orders, st.sampled_from(["desired", "generation", "epoch", "quiesce_s"]), st.sampled_from([None, [], {}, True, "x"])
)
def test_a_wrong_type_names_the_record_and_the_field(order: Order, field: str, value: object) -> None:
    document = json.loads(order.encode()) | {field: value}
    with pytest.raises(RecordError, match=rf"^order: {field}: must be"):
        Order.decode(json.dumps(document).encode())


def test_a_later_major_version_is_refused() -> None:
    with pytest.raises(RecordError, match="reads version 1, not 2"):
        Leader.decode(b'{"v":2,"identity":"a"}')


@given(st.floats(min_value=0, max_value=1e11), st.floats(min_value=0, max_value=1e11))
def test_history_keys_sort_by_time(earlier: float, later: float) -> None:
    earlier, later = sorted((earlier, later))
    keys = Keys()
    first = keys.record("shop", "deployment", "orders", earlier, "a")
    second = keys.record("shop", "deployment", "orders", later, "b")
    assert first < second


@pytest.mark.parametrize("prefix", ["", "ebbtide", "/ebbtide/"])
def test_a_wrong_prefix_names_the_rule(prefix: str) -> None:
    with pytest.raises(ValueError, match="must start with '/' and not end with '/'"):
        Keys(prefix)


@pytest.mark.parametrize(
    "field",
    [
        '"oldest_age_s":NaN',
        '"oldest_age_s":Infinity',
        '"eta_s":1e999',
        '"active":' + "9" * 30,
        '"tally":{"finished":' + "9" * 30 + "}",
        '"extra":' + "[" * 20_000 + "]" * 20_000,
    ],
)
def test_numbers_and_nesting_without_bounds_are_refused(field: str) -> None:
    with pytest.raises(RecordError):
        Report.decode(b'{"state":"Serving","sequence":1,"boot_id":"b",%b}' % field.encode())


@pytest.mark.parametrize("field", ['"active":-1', '"generation":-1', '"tally":{"finished":-1}'])
def test_counts_below_zero_are_refused(field: str) -> None:
    with pytest.raises(RecordError, match="0"):
        Report.decode(b'{"state":"Serving","sequence":1,"boot_id":"b",%b}' % field.encode())
