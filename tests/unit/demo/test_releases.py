from __future__ import annotations

import json

import pytest

from demo.releases import release_decisions, release_latencies


def line(at: str, event: str, pod: str, *, namespace: str = "shop", **fields: object) -> str:
    entry = {"at": f"2026-11-27T10:00:{at}Z", "event": event, "workload": f"{namespace}/deployment/orders", "pod": pod}
    return json.dumps({**entry, **fields})


def released(at: str, decided_at: str, pod: str, *, namespace: str = "shop") -> str:
    decided = f"1970-01-01T00:00:{decided_at}Z"
    return line(at, "pod.released", pod, namespace=namespace, decided_at=decided)


def test_the_first_decision_counts_also_where_it_was_carried_out_again() -> None:
    log = [released("02.000", "01.500", "a"), released("04.000", "03.500", "a")]
    assert release_decisions(log, "shop") == {"a": 1.5}


def test_a_pod_that_was_told_to_serve_again_is_released_anew() -> None:
    log = [
        released("02.000", "01.000", "a"),
        released("09.000", "08.000", "a"),
        released("03.000", "02.000", "b"),
        # Of the other replica: its lines come after those of the first one.
        line("05.000", "order.sent", "a", desired="serve"),
        line("06.000", "order.sent", "b", desired="drain"),
        line("07.000", "order.sent", "b", desired="serve"),
    ]
    assert release_decisions(log, "shop") == {"a": 8.0}


@pytest.mark.parametrize(
    "other",
    [
        "Traceback (most recent call last):",
        "{",
        "[]",
        '{"event": "pod.released"}',
        released("1", "1", "a", namespace="x"),
    ],
)
def test_what_is_no_release_of_the_namespace_is_passed_over(other: str) -> None:
    assert release_decisions([other, released("02.000", "01.500", "b")], "shop") == {"b": 1.5}


def test_the_latency_ends_with_the_accepted_deletion() -> None:
    decided = {"a": 1.0, "deleted by somebody before": 5.0, "stands": 6.0}
    assert release_latencies(decided, {"a": 1.25, "deleted by somebody before": 4.0, "x": 9.0}) == [0.25]
