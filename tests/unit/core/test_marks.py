from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.core import names
from ebbtide_operator.core.decide import decide
from ebbtide_operator.core.marks import LONGEST_BUDGET_S, format_time, parse_time, read_marks
from ebbtide_operator.core.model import Pin
from tests.unit.core.builders import NOW, a_pod, a_snapshot, a_workload, an_order


def marked(since: str, deadline: str) -> dict[str, Any]:
    found = read_marks({names.DRAINING_SINCE: since, names.DRAIN_DEADLINE: deadline})
    return {"draining_since": found.draining_since, "deadline_at": found.deadline_at}


@pytest.mark.parametrize(
    "deadline",
    [
        "9999-12-31T23:59:59.999999-01:00",
        "9999-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00+01:00",
        "2999-01-01T00:00:00Z",
        "tomorrow",
    ],
)
def test_a_deadline_that_no_drain_can_have_is_none_and_is_written_anew(deadline: str) -> None:
    marks = marked(format_time(NOW - 1), deadline)
    assert marks == {"draining_since": NOW - 1, "deadline_at": None}
    pod = a_pod("a", original_cost="", **marks)
    snapshot = a_snapshot(a_workload(replicas=0), (pod,), orders={pod.uid: an_order(issued_at=NOW - 1)})
    pins = [action for action in decide(snapshot, NOW).actions if isinstance(action, Pin)]
    assert [(one.since, one.deadline_at) for one in pins] == [(NOW - 1, NOW + 74)]


def test_the_longest_drain_keeps_its_deadline() -> None:
    deadline = format_time(NOW + 0.0006 + LONGEST_BUDGET_S)
    assert marked(format_time(NOW + 0.0004), deadline)["deadline_at"] == parse_time(deadline)


@given(st.datetimes(timezones=st.timezones()))
def test_every_time_that_is_read_can_be_written_with_a_drain_added(moment: Any) -> None:
    try:
        at = parse_time(moment.isoformat())
    except ValueError:
        return
    assert format_time(at + LONGEST_BUDGET_S)
