"""What a pod tries that it may not: every one is refused, in etcd's own shape, and changes nothing."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide_operator.ports import PodIdentity, Put
from ebbtide_operator.serve import bodies, reviews, watcher
from ebbtide_operator.serve import relay as module
from ebbtide_operator.serve.identity import IdentityCache
from ebbtide_operator.serve.limits import TokenBuckets
from tests.unit.etcd.relay_stand import ALICE, BOB, EVE, KEYS, Stand, a_report, b64, until

pytestmark = pytest.mark.both_loops

ORDER = KEYS.order(ALICE.namespace, ALICE.uid)
REPORT = KEYS.report(ALICE.namespace, ALICE.uid)
PHASE = KEYS.phase("shop", "deployment", "orders")


@pytest.fixture
async def stand() -> AsyncIterator[Any]:
    async with Stand() as stand:
        yield stand


async def refused(
    stand: Stand, path: str, body: Any, token: str | None = "alice", status: int = 403, code: int = 7, **arguments: Any
) -> dict[str, Any]:
    """Expect a refusal that changes nothing."""
    before = stand.store.revision, dict(stand.store._leases)
    found, answer = await stand.post(path, body, token, **arguments)
    assert (found, answer.get("code")) == (status, code), answer
    assert answer["error"] == answer["message"] != ""
    assert (stand.store.revision, dict(stand.store._leases)) == before
    return answer


# --- who

CALLS = [
    ("/v3/kv/range", {"key": b64(ORDER)}),
    ("/v3/kv/put", {"key": b64(REPORT), "value": b64(a_report())}),
    ("/v3/watch", {"create_request": {"key": b64(ORDER)}}),
    ("/v3/lease/grant", {"TTL": "30"}),
    ("/v3/lease/keepalive", {"ID": "1"}),
    ("/v3/kv/txn", {}),
]


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_nobody_gets_in_without_a_token(stand: Stand, path: str, body: Any) -> None:
    await refused(stand, path, body, token=None, status=401, code=16)


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_an_unknown_token_does_not_get_in(stand: Stand, path: str, body: Any) -> None:
    await refused(stand, path, body, token="mallory", status=401, code=16)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "alice", "Bearer\talice"])
async def test_other_credentials_do_not_get_in(stand: Stand, header: Any) -> None:
    async with stand.session.post(f"{stand.url}/v3/kv/range", data=b"{}", headers={"Authorization": header}) as answer:
        assert answer.status == 401


async def test_a_token_is_not_told_apart_by_its_beginning(stand: Stand) -> None:
    await stand.post("/v3/kv/range", {"key": b64(ORDER)})
    await refused(stand, "/v3/kv/range", {"key": b64(ORDER)}, token="alic", status=401, code=16)
    await refused(stand, "/v3/kv/range", {"key": b64(ORDER)}, token="alice2", status=401, code=16)


async def test_without_kubernetes_nobody_is_let_in_and_nobody_is_sent_away(stand: Stand) -> None:
    async def fails(token: str) -> None:
        raise OSError("no route")

    stand.reviewer = fails
    await refused(stand, "/v3/kv/range", {"key": b64(ORDER)}, status=503, code=14)


# --- what

OTHER_KEYS = [
    KEYS.order("shop", BOB.uid),
    KEYS.order("bank", ALICE.uid),
    KEYS.order("bank", EVE.uid),
    KEYS.report("shop", BOB.uid),
    KEYS.report("shop", ALICE.uid),  # writes it, does not read it
    KEYS.request("shop", ALICE.uid),
    KEYS.leader,
    KEYS.phase("shop", "deployment", "other"),
    KEYS.phase("bank", "deployment", "orders"),
    KEYS.phase("shop", "statefulset", "orders"),
    PHASE + "/x",
    PHASE + "x",
    KEYS.phases + "shop/deployment/",
    KEYS.orders,
    KEYS.orders + "shop/",
    ORDER + "/",
    ORDER + "\0",
    ORDER[:-1],
    ORDER.replace("/orders/", "/orders/../orders/"),
    ORDER.upper(),
    KEYS.records + "shop/deployment/orders/0",
    "/",
    "",
    "/registry/secrets/shop/token",
]


@pytest.mark.parametrize("key", OTHER_KEYS)
async def test_other_keys_are_not_read(stand: Stand, key: str) -> None:
    await refused(stand, "/v3/kv/range", {"key": b64(key)})
    await refused(stand, "/v3/watch", {"create_request": {"key": b64(key), "start_revision": "1"}})


async def test_a_pod_of_no_known_workload_still_keeps_to_its_namespace(stand: Stand) -> None:
    stand.workloads.clear()
    for key in (
        KEYS.phase("bank", "deployment", "orders"),
        KEYS.phases + "shop/deployment",
        KEYS.order("bank", ALICE.uid),
    ):
        await refused(stand, "/v3/kv/range", {"key": b64(key)})


@pytest.mark.parametrize("key", [*(key for key in OTHER_KEYS if key != REPORT), ORDER, PHASE])
async def test_other_keys_are_not_written(stand: Stand, key: str) -> None:
    await refused(stand, "/v3/kv/put", {"key": b64(key), "value": b64(a_report())})


@pytest.mark.parametrize("end", [b64(ORDER + "0"), b64("\0"), b64(b"\xff"), b64(KEYS.orders[:-1] + "0")])
async def test_ranges_are_not_served_even_around_the_own_key(stand: Stand, end: Any) -> None:
    await refused(stand, "/v3/kv/range", {"key": b64(ORDER), "range_end": end})
    await refused(stand, "/v3/watch", {"create_request": {"key": b64(ORDER), "range_end": end}})


@pytest.mark.parametrize(
    "field",
    [
        {"rangeEnd": b64("\0")},
        {"revision": "1"},
        {"keys_only": True},
        {"min_mod_revision": "1"},
        {"sort_order": "ASCEND"},
        {"key ": b64(KEYS.leader)},
    ],
)
async def test_fields_that_are_not_served_are_not_ignored(stand: Stand, field: dict[str, Any]) -> None:
    await refused(stand, "/v3/kv/range", {"key": b64(ORDER), **field}, status=400, code=3)


@pytest.mark.parametrize("field", [{"prev_kv": True}, {"ignore_lease": True}, {"ignore_value": True}, {"prevKv": True}])
async def test_a_put_reads_nothing_back(stand: Stand, field: dict[str, Any]) -> None:
    body = {"key": b64(REPORT), "value": b64(a_report()), **field}
    await refused(stand, "/v3/kv/put", body, status=400, code=3)


@pytest.mark.parametrize("field", [{"prev_kv": True}, {"filters": ["NOPUT"]}, {"fragment": True}])
async def test_a_watch_has_no_further_powers(stand: Stand, field: dict[str, Any]) -> None:
    body = {"create_request": {"key": b64(ORDER), **field}}
    await refused(stand, "/v3/watch", body, status=400, code=3)


async def test_a_second_key_in_one_watch_is_checked_too(stand: Stand) -> None:
    body = json.dumps({"create_request": {"key": b64(ORDER), "watch_id": "1"}}) + json.dumps(
        {"create_request": {"key": b64(KEYS.leader), "watch_id": "2"}}
    )
    await refused(stand, "/v3/watch", body.encode())


async def test_a_key_given_twice_is_the_one_that_is_checked(stand: Stand) -> None:
    body = b'{"key":"%b","key":"%b"}' % (b64(ORDER).encode(), b64(KEYS.leader).encode())
    await refused(stand, "/v3/kv/range", body)


@pytest.mark.parametrize(
    "path",
    [
        "/v3/kv/txn",
        "/v3/kv/deleterange",
        "/v3/kv/compaction",
        "/v3/lease/revoke",
        "/v3/lease/timetolive",
        "/v3/lease/leases",
        "/v3/kv/lease/leases",
        "/v3/auth/authenticate",
        "/v3/auth/user/add",
        "/v3/cluster/member/list",
        "/v3/maintenance/status",
        "/v3/maintenance/snapshot",
        "/v3/lock/lock",
        "/v3/election/campaign",
        "/v3/kv/range/",
        "/v3/kv//range",
        "/v3/",
    ],
)
async def test_other_calls_are_not_served(stand: Stand, path: str) -> None:
    nested = {
        "success": [{"request_txn": {"success": [{"request_range": {"key": b64("\0"), "range_end": b64("\0")}}]}}],
        "key": b64("\0"),
        "range_end": b64("\0"),
    }
    await refused(stand, path, nested)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_are_not_served(stand: Stand, method: Any) -> None:
    headers = {"Authorization": "Bearer alice"}
    async with stand.session.request(method, f"{stand.url}/v3/kv/range", headers=headers) as answer:
        assert answer.status in {403, 405}


# --- leases


async def test_a_lease_of_another_pod_is_not_kept_alive_or_used(stand: Stand) -> None:
    _, granted = await stand.post("/v3/lease/grant", {"TTL": "30"}, token="bob")
    foreign = granted["ID"]
    await refused(stand, "/v3/lease/keepalive", {"ID": foreign})
    await refused(stand, "/v3/kv/put", {"key": b64(REPORT), "value": b64(a_report()), "lease": foreign})


async def test_the_leaders_lease_is_not_kept_alive(stand: Stand) -> None:
    await stand.state.lead("operator")
    leader = await stand.store.get(KEYS.leader)
    assert leader is not None
    lease = leader.lease
    await refused(stand, "/v3/lease/keepalive", {"ID": str(lease)})


@pytest.mark.parametrize("lease", ["0", "-1", "9223372036854775807", "1"])
async def test_a_guessed_lease_is_not_kept_alive(stand: Stand, lease: Any) -> None:
    await refused(stand, "/v3/lease/keepalive", {"ID": lease})


async def test_the_lease_of_another_pods_report_is_not_ours(stand: Stand) -> None:
    lease = await stand.store.grant(60)
    await stand.store.transact([], [Put(KEYS.report("shop", BOB.uid), a_report(), lease)])
    await stand.state.mirror.reached(stand.store.revision)
    await refused(stand, "/v3/lease/keepalive", {"ID": str(lease)})


async def test_a_pod_does_not_choose_the_id_of_a_lease(stand: Stand) -> None:
    await refused(stand, "/v3/lease/grant", {"TTL": "30", "ID": "4711"})


# --- how much, and what is inside


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"not json",
        b'{"v":2,"state":"Serving","sequence":1,"boot_id":"b"}',
        b'{"state":"Done","sequence":1,"boot_id":"b"}',
        b'{"state":"Serving","sequence":"1","boot_id":"b"}',
        b'{"state":"Serving","sequence":1,"boot_id":"b","oldest_age_s":NaN}',
        b"[" * 12_000,
    ],
)
async def test_a_value_that_is_no_report_is_not_stored(stand: Stand, value: bytes) -> None:
    await refused(stand, "/v3/kv/put", {"key": b64(REPORT), "value": b64(value)}, status=400, code=3)


async def test_a_report_has_a_size(stand: Stand) -> None:
    value = a_report(boot_id="b" * (module.MOST_REPORT_BYTES - len(a_report()) + 1))
    assert len(value) == module.MOST_REPORT_BYTES
    assert (await stand.post("/v3/kv/put", {"key": b64(REPORT), "value": b64(value)}))[0] == 200
    value = value.replace(b'"bb', b'"bbb')
    await refused(stand, "/v3/kv/put", {"key": b64(REPORT), "value": b64(value)}, status=413, code=8)


async def test_a_body_has_a_size(stand: Stand) -> None:
    await refused(stand, "/v3/kv/put", b" " * (bodies.MOST_BODY_BYTES + 1), status=413, code=8)


async def test_a_body_without_a_length_has_a_size_too(stand: Stand) -> None:
    async def endless() -> AsyncIterator[Any]:
        for _ in range(100):
            yield b" " * 4096

    headers = {"Authorization": "Bearer alice"}
    async with stand.session.post(f"{stand.url}/v3/kv/put", data=endless(), headers=headers) as answer:
        assert answer.status == 413


async def test_a_slow_body_is_not_waited_for(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.05)
    released = asyncio.Event()

    async def slow() -> AsyncIterator[Any]:
        yield b"{"
        await released.wait()

    headers = {"Authorization": "Bearer alice"}
    async with stand.session.post(f"{stand.url}/v3/kv/range", data=slow(), headers=headers) as answer:
        assert answer.status == 408
        assert (await answer.json())["code"] == 4
    released.set()


async def test_a_compressed_body_is_not_unpacked(stand: Stand) -> None:
    headers = {"Authorization": "Bearer alice", "Content-Encoding": "gzip"}
    async with stand.session.post(f"{stand.url}/v3/kv/put", data=b"x" * 100, headers=headers) as answer:
        assert answer.status in {400, 415}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 30_000, b'{"key":1}', b'{"key":"%%"}'])
async def test_nonsense_is_named(stand: Stand, body: Any) -> None:
    for path in ("/v3/kv/range", "/v3/kv/put", "/v3/watch"):
        status, answer = await stand.post(path, body)
        assert status in {400, 403}
        assert answer["code"] in {3, 7}


@pytest.mark.parametrize("body", [b'{"TTL":"x"}', b'{"TTL":true}', b'{"TTL":1.5}', b'{"ttl":"5"}'])
async def test_nonsense_about_leases_is_named(stand: Stand, body: Any) -> None:
    await refused(stand, "/v3/lease/grant", body, status=400, code=3)


async def test_a_pod_that_asks_too_often_is_slowed_down_and_others_are_not(stand: Stand) -> None:
    statuses = [(await stand.post("/v3/kv/range", {"key": b64(ORDER)}))[0] for _ in range(40)]
    assert statuses.count(200) == module.REQUESTS_AT_ONCE
    assert statuses[-1] == 429
    assert (await stand.post("/v3/kv/range", {"key": b64(KEYS.order("shop", BOB.uid))}, token="bob"))[0] == 200
    stand.now += 1
    assert (await stand.post("/v3/kv/range", {"key": b64(ORDER)}))[0] == 200


async def test_a_pod_holds_a_bounded_number_of_watches(stand: Stand) -> None:
    body = {"create_request": {"key": b64(ORDER)}}
    open_ones = [stand.watch({"key": b64(ORDER)}) for _ in range(module.WATCHES_PER_POD)]
    for one in open_ones:
        await (await one.__aenter__()).next()
    await refused(stand, "/v3/watch", body, status=429, code=8)
    async with stand.watch({"key": b64(KEYS.order("shop", BOB.uid))}, token="bob") as lines:
        await lines.next()
    for one in open_ones:
        await one.__aexit__(None, None, None)


async def test_one_connection_holds_a_bounded_number_of_watches(stand: Stand) -> None:
    body = b"".join(b'{"create_request":{"key":"%b","watch_id":"%d"}}' % (b64(ORDER).encode(), i) for i in range(1, 9))
    await refused(stand, "/v3/watch", body)


async def test_a_watch_id_is_given_once(stand: Stand) -> None:
    body = json.dumps({"create_request": {"key": b64(ORDER), "watch_id": "1"}}) * 2
    await refused(stand, "/v3/watch", body.encode(), status=400, code=3)


async def test_a_pod_that_does_not_read_is_let_go(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "WRITE_S", 0.2)
    _, writer = await asyncio.open_connection("127.0.0.1", stand.port, limit=1024)
    body = json.dumps({"create_request": {"key": b64(ORDER)}}).encode()
    head = f"POST /v3/watch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(20):
        await until(stand.open_watches)
        while stand.open_watches():  # nobody reads: buffers fill up
            await stand.write(ORDER, b"x" * 200_000)
    writer.close()


async def test_a_flood_of_unknown_tokens_does_not_reach_kubernetes(stand: Stand) -> None:
    for number in range(int(reviews.REVIEWS_AT_ONCE) + 50):
        await stand.post("/v3/kv/range", {"key": b64(ORDER)}, token=f"bad-{number}")
    assert len(stand.reviews) == reviews.REVIEWS_AT_ONCE


def a_token(pod: PodIdentity, number: int = 0) -> str:
    """Return what a token for a pod looks like; nobody signed it."""
    claims = {"kubernetes.io": {"namespace": pod.namespace, "pod": {"name": pod.name, "uid": pod.uid}}, "jti": number}
    return ".".join(
        base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b"{}", json.dumps(claims).encode(), b"made up")
    )


async def test_made_up_tokens_in_the_name_of_a_pod_are_nobodys_and_few(stand: Stand) -> None:
    for number in range(int(reviews.POD_REVIEWS_AT_ONCE + reviews.REVIEWS_AT_ONCE) + 50):
        status, _ = await stand.post("/v3/kv/range", {"key": b64(ORDER)}, token=a_token(ALICE, number))
        assert status in {401, 429}
    assert len(stand.reviews) == reviews.POD_REVIEWS_AT_ONCE + reviews.REVIEWS_AT_ONCE
    # The pod itself is known by its token, and another one is not concerned.
    status, _ = await stand.post("/v3/kv/range", {"key": b64(ORDER)}, token=a_token(BOB))
    assert status == 401


async def test_a_known_token_is_reviewed_again_whatever_the_flood(stand: Stand) -> None:
    assert (await stand.post("/v3/kv/range", {"key": b64(ORDER)}))[0] == 200
    stand.now += 61
    for number in range(int(reviews.REVIEWS_AT_ONCE) + 5):
        await stand.post("/v3/kv/range", {"key": b64(ORDER)}, token=f"bad-{number}")
    assert (await stand.post("/v3/kv/range", {"key": b64(ORDER)}))[0] == 200
    assert stand.reviews.count("alice") == 2


async def test_a_token_that_is_good_no_longer_is_reviewed_as_any_other(stand: Stand) -> None:
    assert (await stand.post("/v3/kv/range", {"key": b64(ORDER)}))[0] == 200
    for number in range(int(reviews.REVIEWS_AT_ONCE)):
        await stand.post("/v3/kv/range", {"key": b64(ORDER)}, token=f"bad-{number}")
    stand.reviewer = stand.nobody
    before = len(stand.reviews)
    stand.now += 61
    for _ in range(20):
        assert (await stand.post("/v3/kv/range", {"key": b64(ORDER)}))[0] in {401, 429}
        stand.now += 6
    assert len(stand.reviews) - before <= 20


# --- the parts


async def test_many_requests_with_one_new_token_are_one_review() -> None:
    asked = []
    release = asyncio.Event()

    async def review(token: str) -> Any:
        asked.append(token)
        await release.wait()
        return ALICE

    cache = IdentityCache(review, lambda: 0.0)
    waiting = [asyncio.create_task(cache.identify("t")) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # the first one's connection breaks
    release.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[1:] == [ALICE] * 4
    assert asked == ["t"]


async def test_a_refusal_is_remembered_for_a_short_while() -> None:
    asked = []
    now = [0.0]

    async def review(token: str) -> None:
        asked.append(token)

    cache = IdentityCache(review, lambda: now[0])
    for at in (0.0, 4.9, 5.1):
        now[0] = at
        assert await cache.identify("t") is None
    assert len(asked) == 2


async def test_trouble_is_not_remembered() -> None:
    answers = iter([OSError("no route"), ALICE])

    async def review(token: str) -> Any:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    cache = IdentityCache(review, lambda: 0.0)
    with pytest.raises(OSError, match="no route"):
        await cache.identify("t")
    assert await cache.identify("t") == ALICE


async def test_the_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebbtide_operator.serve.identity.MOST", 3)

    async def review(token: str) -> Any:
        return ALICE if token.startswith("good") else None

    cache = IdentityCache(review, lambda: 0.0)
    for number in range(10):
        await cache.identify(f"good-{number}")
        await cache.identify(f"bad-{number}")
    assert len(cache._known) == len(cache._unknown) == 3
    assert cache.remembers("good-9")
    assert not cache.remembers("good-0")


def test_a_bucket_fills_with_time_up_to_its_size() -> None:
    now = [0.0]
    buckets: TokenBuckets[str] = TokenBuckets(rate=2, burst=3, clock=lambda: now[0], most=2)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    now[0] = 100
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    for key in ("b", "c"):
        buckets.take(key)
    assert len(buckets._buckets) == 2


def test_lease_ids_tell_pods_apart() -> None:
    families = {module._lease_family(pod) for pod in (ALICE, BOB, EVE)}
    assert len(families) == 3
    assert all(0 < family < 2**63 - module.LEASE_SLOTS for family in families)
