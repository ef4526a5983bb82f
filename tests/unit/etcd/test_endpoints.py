import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.etcd.endpoints import Backoff, Endpoint, Rotation


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:2379", ("http://127.0.0.1:2379", False, "127.0.0.1", 2379)),
        (" https://etcd.example/ ", ("https://etcd.example", True, "etcd.example", 443)),
        ("https://[::1]:9", ("https://[::1]:9", True, "::1", 9)),
    ],
)
def test_reads_a_base_url(url: str, wanted: Any) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.url, endpoint.tls, endpoint.host, endpoint.port) == wanted


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:2379", "grpc://a:1", "https://", "https://a/v3", "https://u:p@a", "https://a?x=1", "http://a:99999"],
)
def test_an_unusable_url_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        Endpoint.parse(url)


def test_one_string_is_no_list_of_endpoints() -> None:
    with pytest.raises(ValueError, match="not one string"):
        Rotation("http://a:1", random.Random(1))


def test_no_endpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Rotation([], random.Random(1))


def test_stays_with_an_endpoint_until_it_fails() -> None:
    rotation = Rotation([f"http://a:{port}" for port in range(1, 4)], random.Random(1))
    first = rotation.current
    assert rotation.current == first
    rotation.fail(first)
    second = rotation.current
    assert second != first
    rotation.fail(first)  # somebody else noticed the same failure
    assert rotation.current == second


def test_every_endpoint_gets_its_turn() -> None:
    urls = {f"http://a:{port}" for port in range(1, 5)}
    rotation = Rotation(sorted(urls), random.Random(3))
    seen = set()
    for _ in urls:
        seen.add(rotation.current.url)
        rotation.fail(rotation.current)
    assert seen == urls


def test_processes_begin_with_different_endpoints() -> None:
    urls = [f"http://a:{port}" for port in range(1, 5)]
    assert len({Rotation(urls, random.Random(seed)).current.url for seed in range(40)}) == len(urls)


@given(st.integers(0, 2**32), st.integers(2, 200))
def test_back_off_is_bounded_and_starts_at_once(seed: Any, tries: Any) -> None:
    backoff = Backoff(random.Random(seed))
    delays = [backoff.next_s() for _ in range(tries)]
    assert delays[0] == 0.0
    assert all(0 <= delay <= 2.0 for delay in delays)
    assert delays[1] <= 0.2
    backoff.reset()
    assert backoff.next_s() == 0.0


def test_back_off_can_be_longer_where_it_was_refused() -> None:
    backoff = Backoff(random.Random(1))
    assert max(backoff.next_s(15.0) for _ in range(200)) > 2.0
