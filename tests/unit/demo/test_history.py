from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from demo.history import Goal, History, Pod, PodEvent, drain_orders


def pod(name: str, template: str = "old", **changes: object) -> Pod:
    return replace(Pod(name, "orders", template, ready=True), **changes)  # type: ignore[arg-type]


def gone(at: float, name: str, draining_since: float | None = None) -> PodEvent:
    return PodEvent(at, pod(name, terminating=True, draining_since=draining_since), gone=True)


ROLLOUT = [
    PodEvent(1.0, pod("a")),
    PodEvent(1.0, pod("b")),
    PodEvent(2.0, Pod("other", "another", "x", ready=True)),
    PodEvent(10.0, pod("c", "new", ready=False)),
    PodEvent(11.0, pod("c", "new")),
    PodEvent(11.1, pod("a", terminating=True)),
    PodEvent(11.2, pod("d", "new", ready=False)),
    PodEvent(12.0, pod("d", "new")),
    PodEvent(12.1, pod("b", draining_since=12.05)),
    gone(13.0, "a"),
    PodEvent(14.0, pod("b", draining_since=12.05, terminating=True)),
    gone(15.0, "b", draining_since=12.05),
]


def test_peak_counts_terminating_pods() -> None:
    assert History("orders", ROLLOUT).peak_pods(5.0, 20.0) == 4


def test_least_serving_leaves_out_terminating_and_draining_pods() -> None:
    history = History("orders", ROLLOUT)
    assert history.least_serving(5.0, 20.0) == 2
    assert history.least_serving(5.0, 11.15) == 2
    assert History("orders", ROLLOUT[:6]).least_serving(11.15, 20.0) == 2
    assert History("orders", [*ROLLOUT[:2], ROLLOUT[5]]).least_serving(0.0, 20.0) == 0


def test_the_state_at_the_start_counts() -> None:
    assert History("orders", ROLLOUT[:2]).peak_pods(5.0, 20.0) == 2


def test_a_rollout_is_over_when_the_last_old_pod_is_gone() -> None:
    history = History("orders", ROLLOUT)
    assert history.reached_at(Goal(2, "old", changed=True), 9.0) == 15.0
    assert History("orders", ROLLOUT[:-1]).reached_at(Goal(2, "old", changed=True), 9.0) is None


def test_a_goal_that_holds_at_the_start_is_reached_there() -> None:
    assert History("orders", ROLLOUT).reached_at(Goal(2, "old"), 5.0) == 5.0


def test_removals_know_the_first_moment_that_a_pod_could_not_stay() -> None:
    a, b = History("orders", ROLLOUT).removals(5.0, 20.0, {"a": 11.05})
    assert (a.pod, a.taken_at, a.deleted_at, a.gone_at) == ("a", 11.05, 11.05, 13.0)
    assert (b.pod, b.taken_at, b.deleted_at, b.gone_at) == ("b", 12.05, 14.0, 15.0)


def test_a_pod_that_was_returned_is_not_removed() -> None:
    events = [*ROLLOUT[:2], PodEvent(3.0, pod("a", draining_since=2.9)), PodEvent(4.0, pod("a"))]
    assert History("orders", events).removals(0.0, 20.0, {}) == ()
    assert drain_orders(events) == {"a": [2.9]}


def test_projection_reads_what_the_api_server_sends() -> None:
    document = {
        "metadata": {
            "name": "orders-1",
            "labels": {"app": "orders", "pod-template-hash": "abc"},
            "annotations": {"ebbtide.dev/draining-since": "2026-05-01T10:00:00.250Z"},
            "deletionTimestamp": "2026-05-01T10:00:30Z",
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    seen = Pod.from_json(document)
    assert seen == Pod("orders-1", "orders", "abc", ready=True, terminating=True, draining_since=1777629600.25)
    assert not seen.serving


def test_the_timeline_has_a_moment_for_each_change_of_a_number() -> None:
    moments = History("orders", ROLLOUT).timeline(11.0, 13.5, "old")
    assert [(moment.pods, moment.old, moment.serving, moment.draining, moment.terminating) for moment in moments] == [
        (3, 2, 3, 0, 0),
        (3, 2, 2, 0, 1),
        (4, 2, 2, 0, 1),
        (4, 2, 3, 0, 1),
        (4, 2, 2, 1, 1),
        (3, 1, 2, 1, 0),
    ]


pods = st.builds(
    Pod,
    name=st.sampled_from("abcde"),
    deployment=st.just("orders"),
    template=st.sampled_from(["old", "new"]),
    ready=st.booleans(),
    terminating=st.booleans(),
    draining_since=st.none() | st.floats(0, 100),
)
event_lists = st.lists(st.builds(PodEvent, at=st.floats(0, 100), pod=pods, gone=st.booleans()), max_size=30).map(
    lambda events: sorted(events, key=lambda event: event.at)
)


@given(event_lists)
def test_never_more_pods_serve_than_exist(events: list[PodEvent]) -> None:
    history = History("orders", events)
    assert history.least_serving(0.0, 100.0) <= history.peak_pods(0.0, 100.0) <= 5


@given(event_lists)
def test_removals_come_in_the_order_in_which_pods_were_taken(events: list[PodEvent]) -> None:
    taken = [removal.taken_at for removal in History("orders", events).removals(0.0, 100.0, {})]
    assert taken == sorted(taken)
