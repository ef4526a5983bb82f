from __future__ import annotations

import json
from dataclasses import replace

from demo.audit import Write
from demo.history import Goal, Pod, PodEvent
from demo.results import Course, Recording, measure
from demo.table import render
from examples.orders.orders.accounts import Attempt, Execution, OrderRecord, Outcome
from examples.orders.orders.marks import Mark, MarkKind

SCALE_DOWN = Course("orders-a", "t", 1, 100.0, 100.0, 100.5, Goal(1, "t"), surplus=1)


def order(number: int, pod: str, *, lost: bool = False, deployment: str = "orders-a") -> OrderRecord:
    return OrderRecord(
        str(number),
        deployment,
        4.0,
        98.0,
        [Attempt(98.0, 101.0 if lost else 102.0, Outcome.CUT if lost else Outcome.ANSWERED)],
        {"x": Execution(pod, 98.0, None if lost else 102.0)},
        101.0 if lost else 102.0,
    )


def recording(**changes: object) -> Recording:
    values: dict[str, object] = {
        "scene": "scale-down",
        "ended_at": 110.0,
        "courses": (SCALE_DOWN,),
        "orders": (order(1, "p1"), order(2, "p1", lost=True), order(3, "p2"), order(4, "q1", deployment="orders-b")),
        "marks": (Mark(kind=MarkKind.TOLD, pod="p1", at=100.9), Mark(kind=MarkKind.CLOSED, pod="p1", at=101.5)),
        "events": (
            PodEvent(50.0, Pod("p1", "orders-a", "t", ready=True)),
            PodEvent(50.0, Pod("p2", "orders-a", "t", ready=True)),
            PodEvent(100.6, Pod("p1", "orders-a", "t", ready=True, terminating=True)),
            PodEvent(103.0, Pod("p1", "orders-a", "t", terminating=True), gone=True),
        ),
        "writes": (
            Write(100.5, "controller", "delete", "pods", "", "shop", "p1", 200),
            Write(100.1, "controller", "update", "deployments", "status", "shop", "orders-a", 200),
        ),
    }
    return Recording(**{**values, **changes})  # type: ignore[arg-type]


def test_a_row_has_every_figure_of_its_deployment_alone() -> None:
    row = measure(recording(), SCALE_DOWN, 1000.0, "shop", "ebbtide-system")
    assert (row.sent, row.finished, row.lost, row.duplicated, row.open) == (3, 2, 1, 0, 0)
    # Two orders on the pod that went; the other pod had one, so one was interrupted for nothing.
    assert row.interrupted_for_nothing == 1
    assert (row.over_s, row.status_s) == (3.0, 0.5)
    assert (row.peak_pods, row.least_serving) == (2, 1)
    assert row.removed_pods == 1
    assert row.signal_p50_s is not None
    assert abs(row.signal_p50_s - 0.4) < 1e-6
    assert row.closed_p50_s is not None
    assert abs(row.closed_p50_s - 1.0) < 1e-6
    assert row.writes_per_pod == 1.0
    assert not row.kept


def test_the_watch_gives_the_time_of_a_deletion_that_the_audit_log_lacks() -> None:
    row = measure(recording(writes=()), SCALE_DOWN, 1000.0, "shop", "ebbtide-system")
    assert row.signal_p50_s is not None
    assert abs(row.signal_p50_s - 0.3) < 1e-6


def test_a_pod_that_had_to_go_before_it_was_ready_is_told_apart() -> None:
    started = Pod("p3", "orders-a", "t")
    events = (
        PodEvent(99.0, started),
        PodEvent(101.0, replace(started, draining_since=101.0)),
        # Ready at last, and told again: that is a signal like all others.
        PodEvent(115.0, replace(started, ready=True)),
        PodEvent(120.0, replace(started, ready=True, draining_since=120.0)),
    )
    marks = [Mark(kind=MarkKind.TOLD, pod="p3", at=at) for at in (113.5, 120.25)]
    seen = recording()
    seen = replace(seen, events=(*seen.events, *events), marks=(*seen.marks, *marks))
    row = measure(seen, SCALE_DOWN, 1000.0, "shop", "ebbtide-system")
    assert (row.signals, row.starting, row.starting_signal_s) == (2, 1, 12.5)
    assert row.signal_p99_s is not None
    assert abs(row.signal_p99_s - 0.4) < 1e-6
    assert render([row]).splitlines()[-1] == (
        "scale-down, orders-a: 1 pods had to go while they started; the last to know did after 12.5 s"
    )


def test_a_deployment_that_lost_nothing_and_got_there_is_kept() -> None:
    clean = recording(orders=(order(1, "p1"),))
    assert measure(clean, SCALE_DOWN, 1000.0, "shop", "ebbtide-system").kept
    never_over = recording(orders=(order(1, "p1"),), events=recording().events[:-1])
    assert not measure(never_over, SCALE_DOWN, 1000.0, "shop", "ebbtide-system").kept


def test_rows_are_json() -> None:
    row = measure(recording(), SCALE_DOWN, 1000.0, "shop", "ebbtide-system")
    assert json.loads(json.dumps(row.to_json()))["lost"] == 1


def test_the_table_has_a_line_for_each_row_and_none_is_cut() -> None:
    row = measure(recording(), SCALE_DOWN, 1000.0, "shop", "ebbtide-system")
    text = render([row])
    (line,) = [line for line in text.splitlines() if line.startswith("orders-a")]
    assert line.split()[:13] == ["orders-a", "3", "2", "1", "0", "1", "3.0", "0.5", "2", "1", "0.40", "/", "0.40"]
    assert line.split()[13:] == ["-", "1.0", "(0.0)"]
    assert max(len(text) for text in text.splitlines()) == len(text.splitlines()[2])


def test_the_table_shows_a_dash_where_nothing_was_measured() -> None:
    row = measure(recording(events=(), marks=()), SCALE_DOWN, 1000.0, "shop", "ebbtide-system")
    assert render([row]).splitlines()[4].split()[-2:] == ["-", "-"]


def test_orders_that_have_no_column_are_told_below() -> None:
    refused = OrderRecord("9", "orders-a", 1.0, 99.0, [Attempt(99.0, 130.0, Outcome.REFUSED)], {}, 130.0)
    row = measure(recording(orders=(refused,)), SCALE_DOWN, 1000.0, "shop", "ebbtide-system")
    assert render([row]).splitlines()[-1] == "scale-down, orders-a: 1 orders turned away for good, 0 undecided"
