"""Which tokens are shown to Kubernetes: fair to pods behind one address, bounded for whoever makes up tokens."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.serve import reviews
from ebbtide_operator.serve.reviews import ReviewLimits, claimed_pod

NAT = "10.0.0.1"


def a_token(claims: Any) -> str:
    body = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return f"e30.{base64.urlsafe_b64encode(body).decode().rstrip('=')}.made-up"


def of(namespace: str, uid: str, number: int = 0) -> str:
    return a_token({"kubernetes.io": {"namespace": namespace, "pod": {"name": "a", "uid": uid}}, "jti": str(number)})


class Stand:
    def __init__(self, *known: tuple[str, str]) -> None:
        self.now = 1000.0
        self.known = set(known)
        self.limits = ReviewLimits(lambda namespace, uid: (namespace, uid) in self.known, lambda: self.now)

    def admitted(self, tokens: Any, address: str = NAT) -> int:
        return sum(self.limits.admit(address, token) for token in tokens)


def test_a_bound_token_names_its_pod() -> None:
    assert claimed_pod(of("shop", "uid-1")) == ("shop", "uid-1")


@pytest.mark.parametrize(
    "claims",
    [
        {},
        [],
        7,
        "text",
        {"kubernetes.io": []},
        {"kubernetes.io": {"namespace": "shop"}},
        {"kubernetes.io": {"namespace": "shop", "pod": "uid-1"}},
        {"kubernetes.io": {"namespace": "shop", "pod": {"uid": 7}}},
        {"kubernetes.io": {"namespace": ["shop"], "pod": {"uid": "uid-1"}}},
        {"kubernetes.io": {"namespace": "", "pod": {"uid": "uid-1"}}},
        b"[" * 5000,
        b"\xff\xfe",
    ],
)
def test_a_token_that_names_no_pod_is_one_of_its_address(claims: Any) -> None:
    assert claimed_pod(a_token(claims)) is None


@given(st.text() | st.from_regex(r"\A[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*\Z"))
def test_any_text_is_read(token: str) -> None:
    assert claimed_pod(token) is None or token.count(".") == 2


@pytest.mark.parametrize(("namespaces", "most_s"), [(1, 90.0), (10, 30.0)])
def test_five_thousand_pods_behind_one_address_are_back_soon(namespaces: int, most_s: float) -> None:
    """docs/relay.md has the arithmetic; a pod that was refused comes again within 5 s."""
    pods = [(f"shop-{number % namespaces}", f"uid-{number}") for number in range(5000)]
    stand = Stand(*pods)
    began_at = stand.now
    # Each in turn, so that some come at any moment.
    turns = [[of(*pod) for pod in pods[turn::50]] for turn in range(50)]
    while any(turns):
        for turn, waiting in enumerate(turns):
            turns[turn] = [token for token in waiting if not stand.limits.admit(NAT, token)]
            stand.now += 0.1
    assert stand.now - began_at <= most_s


def test_tokens_that_name_nobody_are_bounded_by_their_address() -> None:
    stand = Stand(("shop", "uid-1"))
    assert stand.admitted(of("shop", f"made-up-{number}") for number in range(1000)) == reviews.REVIEWS_AT_ONCE
    stand.now += 1.0
    assert stand.admitted(f"{number}" for number in range(1000)) == reviews.REVIEWS_PER_S
    assert stand.admitted([of("shop", "uid-1")]) == 1


def test_tokens_in_the_name_of_one_pod_are_bounded_and_harm_no_other() -> None:
    stand = Stand(("shop", "victim"), ("shop", "other"))
    flood = [of("shop", "victim", number) for number in range(1000)]
    assert stand.admitted(flood, "6.6.6.6") == reviews.POD_REVIEWS_AT_ONCE + reviews.REVIEWS_AT_ONCE
    assert stand.admitted([of("shop", "other")]) == 1
    # The pod that was named pays by its address.
    assert stand.admitted([of("shop", "victim")]) == 1


def test_a_namespace_that_is_flooded_does_not_slow_another() -> None:
    pods = [("evil", f"uid-{number}") for number in range(5000)]
    stand = Stand(("shop", "uid-1"), *pods)
    flood = [of(*pod, number) for number in range(3) for pod in pods]
    most = reviews.NAMESPACE_REVIEWS_AT_ONCE + reviews.REVIEWS_AT_ONCE
    assert stand.admitted(flood, "6.6.6.6") == most
    assert stand.admitted([of("shop", "uid-1")], "6.6.6.6") == 1


def test_all_of_them_together_are_bounded() -> None:
    pods = [(f"evil-{number % 100}", f"uid-{number}") for number in range(5000)]
    stand = Stand(*pods)
    for pod in pods:
        stand.limits.admit("6.6.6.6", of(*pod))
    admitted = 0
    for _ in range(100):
        stand.now += 0.1
        admitted += stand.admitted((of(*pod) for pod in pods[:500]), "6.6.6.6")
    assert admitted <= 10 * (reviews.ALL_REVIEWS_PER_S + reviews.REVIEWS_PER_S) + 1
