from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.core import names
from ebbtide_operator.core.model import PodView
from ebbtide_operator.core.verdict import Cause, DeleteRequest, HoldContext, delete_verdict

NOW = 1_000_000.0
CREATED_AT = NOW - 100


def a_request(*, user: str = names.REPLICASET_CONTROLLER, grace_period_s: int | None = 75, **pod: Any) -> DeleteRequest:
    fields = {"label": "true"} | pod
    return DeleteRequest(user, PodView("shop", "orders-1", "uid", "rs", CREATED_AT, **fields), grace_period_s)


def test_a_pod_that_drains_is_held_and_the_message_says_what_it_waits_for() -> None:
    request = a_request(draining_since=NOW - 5, deadline_at=NOW + 70)
    verdict = delete_verdict(request, HoldContext(tasks=3, eta_s=40.4), NOW)
    assert (verdict.allow, verdict.cause, verdict.code) == (False, Cause.DRAINING, 429)
    assert verdict.message == "ebbtide: draining since 1970-01-12T13:46:35Z, 3 tasks left, about 40 s"


def test_a_pod_that_was_not_chosen_is_held_and_told_so() -> None:
    verdict = delete_verdict(a_request(), HoldContext(managed=True, workload="deployment/orders", draining=2), NOW)
    assert (verdict.allow, verdict.cause) == (False, Cause.WAITING)
    assert verdict.message == "ebbtide: waits for a drain slot; draining now: 2 pods of deployment/orders"


@pytest.mark.parametrize(
    ("request_", "context", "cause"),
    [
        (a_request(user="alice"), HoldContext(), Cause.NOT_A_CONTROLLER),
        (a_request(user="system:node:n1"), HoldContext(), Cause.NOT_A_CONTROLLER),
        (
            a_request(user="system:serviceaccount:kube-system:namespace-controller"),
            HoldContext(),
            Cause.NOT_A_CONTROLLER,
        ),
        (a_request(grace_period_s=0), HoldContext(), Cause.FORCED),
        (a_request(terminating=True), HoldContext(), Cause.TERMINATING),
        (a_request(label="floor"), HoldContext(), Cause.NOT_MANAGED),
        (a_request(label=""), HoldContext(), Cause.NOT_MANAGED),
        (a_request(), HoldContext(managed=False), Cause.NOT_MANAGED),
        (a_request(released="clean"), HoldContext(), Cause.RELEASED),
        (a_request(draining_since=NOW - 75, deadline_at=NOW), HoldContext(), Cause.DEADLINE),
        (a_request(draining_since=NOW), HoldContext(leader_silent_s=26), Cause.LEADER_SILENT),
        (a_request(draining_since=NOW), HoldContext(store_lost_s=11), Cause.STORE_LOST),
    ],
)
def test_what_is_never_held(request_: DeleteRequest, context: HoldContext, cause: Cause) -> None:
    verdict = delete_verdict(request_, context, NOW)
    assert (verdict.allow, verdict.cause) == (True, cause)


@pytest.mark.parametrize("marks", [{}, {"draining_since": NOW - 5}, {"deadline_at": NOW + 70}])
def test_a_pod_of_a_workload_that_stays_unknown_is_let_go(marks: dict[str, Any]) -> None:
    request, unknown = a_request(**marks), HoldContext(managed=None)
    assert not delete_verdict(request, unknown, CREATED_AT + 29).allow, "its events may be on their way"
    verdict = delete_verdict(request, unknown, CREATED_AT + 30)
    assert (verdict.allow, verdict.cause) == (True, Cause.NOT_MANAGED)
    assert not delete_verdict(request, HoldContext(managed=True), CREATED_AT + 30).allow


def test_a_drain_under_way_keeps_its_deadline_though_its_workload_is_unknown() -> None:
    request = a_request(draining_since=NOW - 5, deadline_at=NOW + 70)
    assert not delete_verdict(request, HoldContext(managed=None), NOW).allow
    assert delete_verdict(request, HoldContext(managed=None), NOW + 70).allow


pods = st.fixed_dictionaries(
    {
        "label": st.sampled_from(["true", "floor", ""]),
        "terminating": st.booleans(),
        "draining_since": st.none() | st.floats(0, NOW),
        "deadline_at": st.none() | st.floats(0, 2 * NOW),
        "released": st.none() | st.sampled_from(["clean", "unknown"]),
    }
)
contexts = st.builds(
    HoldContext,
    leader_silent_s=st.floats(0, 100),
    store_lost_s=st.floats(0, 100),
    managed=st.none() | st.booleans(),
    tasks=st.none() | st.integers(0, 9),
)


@given(pods, contexts, st.floats(0, 3 * NOW))
def test_a_hold_needs_every_one_of_its_grounds(pod: dict[str, Any], context: HoldContext, now: float) -> None:
    request = a_request(**pod)
    verdict = delete_verdict(request, context, now)
    if not verdict.allow:
        assert request.pod.label == "true"
        assert not request.pod.terminating
        assert request.pod.released is None
        assert request.pod.deadline_at is None or now < request.pod.deadline_at
        assert context.leader_silent_s <= context.leader_limit_s
        assert context.store_lost_s <= context.fail_open_after_s
        assert context.managed is not False
        assert context.managed or request.pod.deadline_at is not None or now < CREATED_AT + 30
        assert verdict.message


@given(pods, contexts, st.floats(0, 3 * NOW), st.floats(0, NOW))
def test_what_passes_once_passes_later_too(pod: dict[str, Any], context: HoldContext, now: float, more: float) -> None:
    request = a_request(**pod)
    if delete_verdict(request, context, now).allow:
        assert delete_verdict(request, context, now + more).allow
