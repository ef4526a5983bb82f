import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.etcd import wire
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.messages import Changed, Compare, Delete, KeyValue, Put, RangeResult, Removed

# What etcd may hold: any bytes, of which the client makes text that it can turn back.
keys = st.binary(min_size=1, max_size=40).map(lambda raw: raw.decode(errors="surrogateescape"))
values = st.binary(max_size=60)
revisions = st.integers(0, 2**63 - 1)
key_values = st.builds(KeyValue, keys, values, revisions, revisions, revisions)


def b64(data: bytes | str) -> str:
    raw = data.encode(errors="surrogateescape") if isinstance(data, str) else data
    return base64.b64encode(raw).decode()


def gateway(document: dict[str, Any]) -> Any:
    """Spell a document as the gateway does: 64-bit integers as strings, zero values left out."""
    if isinstance(document, dict):
        spelled = {name: gateway(value) for name, value in document.items()}
        return {name: value for name, value in spelled.items() if value not in ("0", "", False, [], None)}
    if isinstance(document, list):
        return [gateway(item) for item in document]
    if isinstance(document, bytes):
        return b64(document)
    if isinstance(document, int) and not isinstance(document, bool):
        return str(document)
    return document


def spelled_key_value(kv: KeyValue) -> dict[str, Any]:
    return {
        "key": b64(kv.key),
        "value": kv.value,
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "lease": kv.lease,
        "version": 7,
    }


def body(document: dict[str, Any]) -> bytes:
    return json.dumps(gateway(document)).encode()


@given(st.lists(key_values, max_size=5), revisions, st.integers(0, 2**64 - 1), st.booleans())
def test_reads_a_range_with_every_zero_left_out(items: Any, revision: Any, cluster: int, more: Any) -> None:
    header = {"revision": revision, "cluster_id": cluster}
    answer = body({"header": header, "kvs": [spelled_key_value(kv) for kv in items], "more": more})
    assert wire.decode_range(answer) == wire.Page(RangeResult(tuple(items), revision, cluster), more)


@given(st.lists(st.one_of(key_values, st.tuples(keys, revisions)), max_size=5), revisions, st.integers(0, 9))
def test_reads_a_watch_answer(events: Any, revision: Any, watch_id: Any) -> None:
    spelled = [
        {"kv": spelled_key_value(event)}
        if isinstance(event, KeyValue)
        else {"type": "DELETE", "kv": {"key": b64(event[0]), "mod_revision": event[1]}}
        for event in events
    ]
    wanted = tuple(
        Changed(event, event.mod_revision) if isinstance(event, KeyValue) else Removed(*event) for event in events
    )
    line = body({"result": {"header": {"revision": revision}, "watch_id": watch_id, "events": spelled}})
    answer = wire.decode_watch_line(line)
    assert answer == wire.WatchAnswer(watch_id, revision, events=wanted)


@given(keys, values, revisions)
def test_writes_a_put_that_says_the_same(key: str, value: bytes, lease: Any) -> None:
    document = json.loads(wire.encode_put(Put(key, value, lease)))
    assert base64.b64decode(document["key"]).decode(errors="surrogateescape") == key
    assert base64.b64decode(document["value"]) == value
    assert int(document.get("lease", 0)) == lease


@given(keys, st.binary(max_size=5))
def test_prefix_end_is_above_every_key_of_the_prefix(prefix: str, rest: Any) -> None:
    end = wire.prefix_end(prefix)
    raw = prefix.encode(errors="surrogateescape")
    assert end == b"\0" or raw + rest < end


@given(keys, keys)
def test_prefix_end_is_below_every_other_key(prefix: str, other: str) -> None:
    end = wire.prefix_end(prefix)
    raw, key = prefix.encode(errors="surrogateescape"), other.encode(errors="surrogateescape")
    if end != b"\0" and raw <= key < end:
        assert key.startswith(raw)


def test_prefix_of_high_bytes_ends_at_the_end_of_all_keys() -> None:
    assert wire.prefix_end(b"\xff\xff".decode(errors="surrogateescape")) == b"\0"


def test_a_page_goes_on_after_the_last_key() -> None:
    document = json.loads(wire.encode_range("/p/", prefix=True, after="/p/k", limit=2, revision=9))
    assert base64.b64decode(document["key"]) == b"/p/k\0"
    assert base64.b64decode(document["range_end"]) == b"/p0"
    assert (document["limit"], document["revision"]) == ("2", "9")


def test_a_transaction_compares_by_equality() -> None:
    compare = [Compare("/a", create_revision=5), Compare("/b", mod_revision=0), Compare("/c", lease=7)]
    document = json.loads(wire.encode_txn(compare, [Put("/a", b"1"), Delete("/d/", prefix=True)]))
    assert document == {
        "compare": [
            {"key": b64("/a"), "result": "EQUAL", "target": "CREATE", "create_revision": "5"},
            {"key": b64("/b"), "result": "EQUAL", "target": "MOD", "mod_revision": "0"},
            {"key": b64("/c"), "result": "EQUAL", "target": "LEASE", "lease": "7"},
        ],
        "success": [
            {"request_put": {"key": b64("/a"), "value": b64("1")}},
            {"request_delete_range": {"key": b64("/d/"), "range_end": b64("/d0")}},
        ],
    }


@pytest.mark.parametrize("compare", [Compare("/a"), Compare("/a", create_revision=1, mod_revision=1)])
def test_a_comparison_has_exactly_one_target(compare: Any) -> None:
    with pytest.raises(ValueError, match="give one of"):
        wire.encode_txn([compare], [])


def test_a_failed_transaction_leaves_its_flag_out() -> None:
    assert wire.decode_txn(b'{"header":{"revision":"4"}}').succeeded is False


def test_an_expired_lease_has_no_ttl() -> None:
    assert wire.decode_keep_alive(b'{"result":{"header":{},"ID":"7"}}\n') == 0


def test_several_watches_are_several_objects_in_one_body() -> None:
    text = wire.encode_watch([wire.WatchTarget(1, "/a", start_revision=4), wire.WatchTarget(2, "/b/", prefix=True)])
    first, second = (json.loads(line)["create_request"] for line in text.splitlines())
    assert first == {"key": b64("/a"), "watch_id": "1", "start_revision": "4", "progress_notify": True}
    assert second == {"key": b64("/b/"), "range_end": b64("/b0"), "watch_id": "2", "progress_notify": True}


def test_a_compaction_answer_has_no_revision() -> None:
    line = b'{"result":{"header":{"raft_term":"2"},"watch_id":"1","canceled":true,"compact_revision":"15"}}'
    assert wire.decode_watch_line(line) == wire.WatchAnswer(1, 0, canceled=True, compact_revision=15)


def test_a_refused_watch_is_created_and_cancelled_at_once() -> None:
    line = (
        b'{"result":{"watch_id":"-1","created":true,"canceled":true,"cancel_reason":"etcdserver: permission denied"}}'
    )
    answer = wire.decode_watch_line(line)
    assert (answer.watch_id, answer.created, answer.canceled) == (-1, True, True)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (b'{"code":5,"message":"etcdserver: requested lease not found"}', (5, "etcdserver: requested lease not found")),
        (b'{"error":"no","code":7,"message":"no"}', (7, "no")),
        (b'{"error":{"code":3,"message":"etcdserver: user name is empty"}}', (3, "etcdserver: user name is empty")),
        (b'{"error":{"grpc_code":14,"http_code":503,"message":"gone"}}', (14, "gone")),
        (b"<html>502</html>", (0, "<html>502</html>")),
        (b"", (0, "")),
        (b"[1]", (0, "[1]")),
    ],
)
def test_reads_every_shape_of_an_error(text: Any, failure: Any) -> None:
    found = wire.decode_failure(text)
    assert (found.code, found.message) == failure


def test_an_error_inside_a_stream_is_told_from_a_bad_line() -> None:
    with pytest.raises(wire.StreamFailure) as raised:
        wire.decode_watch_line(b'{"error":{"grpc_code":14,"message":"leader lost"}}')
    assert raised.value.failure == wire.Failure(14, "leader lost")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"result":5}',
        b'{"result":{"watch_id":"x"}}',
        b'{"result":{"watch_id":true}}',
        b'{"result":{"created":"yes"}}',
        b'{"result":{"events":{}}}',
        b'{"result":{"events":[1]}}',
        b'{"result":{"events":[{"type":"MOVE","kv":{}}]}}',
        b'{"result":{"events":[{"kv":{"key":"%%%"}}]}}',
        b'{"result":{"events":[{"kv":{"key":1}}]}}',
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_not_the_gateways_is_named(text: Any) -> None:
    with pytest.raises(WireError):
        wire.decode_watch_line(text)


@given(st.binary(max_size=80))
def test_no_bytes_cause_another_error(text: Any) -> None:
    for decode in (wire.decode_range, wire.decode_watch_line, wire.decode_keep_alive, wire.decode_grant):
        try:
            decode(text)
        except WireError:
            continue
    wire.decode_failure(text)
