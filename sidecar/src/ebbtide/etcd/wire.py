"""Codec of etcd's v3 JSON gateway: pure functions from data to request bodies and from answer bodies to data.

The gateway's conventions: keys and values are base64, 64-bit integers are strings, and a field with its zero value is
left out (`type` of a put, `succeeded` of a failed transaction, every revision that is 0).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ebbtide.etcd import fields
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.messages import Changed, Compare, Delete, KeyValue, Put, RangeResult, Removed, TxnResult

RANGE = "/v3/kv/range"
PUT = "/v3/kv/put"
DELETE = "/v3/kv/deleterange"
TXN = "/v3/kv/txn"
WATCH = "/v3/watch"
GRANT = "/v3/lease/grant"
KEEP_ALIVE = "/v3/lease/keepalive"
REVOKE = "/v3/lease/revoke"
AUTHENTICATE = "/v3/auth/authenticate"

HEARTBEAT = "Ebbtide-Heartbeat"
"""Header: in a watch request, that its body stays open for beats; in an answer, that the server takes them."""
SPARING = "2"
"""Of that header in a request: an answer to every second beat is enough. Any other value asks for each."""
OPENING_END = b"\n\n"
"""Ends what such a watch asks for; lines follow, each the body of a keep-alive."""

# gRPC status codes as the gateway spells them.
CANCELLED = 1
UNKNOWN = 2
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
INVALID_ARGUMENT = 3
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNAVAILABLE = 14
UNAUTHENTICATED = 16

MOST_FAILURE_BYTES = 64 * 1024
"""How much of an error answer is worth reading."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a range; `more` says that keys after the last one were left out."""

    result: RangeResult
    more: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """An error answer: gRPC status code (0 where the body carries none) and message."""

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class WatchTarget:
    """One watch of a watch request: a key or a prefix, from a revision on (0: from now)."""

    watch_id: int
    key: str
    prefix: bool = False
    start_revision: int = 0


@dataclass(frozen=True, slots=True)
class WatchAnswer:
    """One line of a watch.

    Without events, not `created` and not `canceled` it is a progress notification: everything up to `revision` was
    delivered. `compact_revision` above 0 means that the start revision was compacted. `cluster` is the id of the store;
    0: it does not say. With a `lease` it answers a beat and says nothing else: the lease has `ttl_s` seconds now, or
    has ended.
    """

    watch_id: int
    revision: int
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: tuple[Changed | Removed, ...] = ()
    cluster: int = 0
    lease: int = 0
    ttl_s: int = 0


def prefix_end(prefix: str) -> bytes:
    """Return the first key after every key that starts with `prefix`; a zero byte means the end of all keys."""
    end = prefix.encode(errors="surrogateescape").rstrip(b"\xff")
    return end[:-1] + bytes([end[-1] + 1]) if end else b"\0"


# --- requests


def encode_range(
    key: str, *, prefix: bool = False, after: str | None = None, limit: int = 0, revision: int = 0
) -> bytes:
    """Ask for a key or a prefix.

    Args:
        key: The key, or the prefix.
        prefix: Ask for every key that starts with `key`.
        after: Leave out the keys up to this one: the next page.
        limit: Most keys to answer with; 0: all.
        revision: Read as of this revision; 0: the newest.
    """
    body: dict[str, Any] = {"key": fields.text(key if after is None else after + "\0")}
    if prefix:
        body["range_end"] = fields.text(prefix_end(key))
    if limit:
        body["limit"] = str(limit)
    if revision:
        body["revision"] = str(revision)
    return fields.dump(body)


def encode_put(put: Put) -> bytes:
    return fields.dump(_put(put))


def encode_delete(delete: Delete) -> bytes:
    return fields.dump(_delete(delete))


def encode_txn(compare: Sequence[Compare], then: Sequence[Put | Delete]) -> bytes:
    return fields.dump({"compare": [_compare(one) for one in compare], "success": [_operation(one) for one in then]})


def encode_grant(ttl_s: int, lease: int = 0) -> bytes:
    body = {"TTL": str(ttl_s)}
    if lease:
        body["ID"] = str(lease)
    return fields.dump(body)


def encode_lease(lease: int) -> bytes:
    """Encode the body of a keep-alive or a revoke."""
    return fields.dump({"ID": str(lease)})


def encode_authenticate(username: str, password: str) -> bytes:
    return fields.dump({"name": username, "password": password})


def encode_watch(targets: Iterable[WatchTarget]) -> bytes:
    """Encode watches that share one connection: the gateway takes one object after the other from the body."""
    return b"\n".join(fields.dump({"create_request": _target(target)}) for target in targets)


# --- answers


def decode_range(body: bytes) -> Page:
    document = fields.parse(body)
    key_values = tuple(_key_value(item) for item in fields.objects(document, "kvs"))
    return Page(RangeResult(key_values, _revision(document), _cluster(document)), more=fields.flag(document, "more"))


def decode_revision(body: bytes) -> int:
    """Return the revision of the answer to a put."""
    return _revision(fields.parse(body))


def decode_delete(body: bytes) -> int:
    """Return how many keys were deleted."""
    return fields.integer(fields.parse(body), "deleted")


def decode_txn(body: bytes) -> TxnResult:
    document = fields.parse(body)
    return TxnResult(fields.flag(document, "succeeded"), _revision(document))


def decode_grant(body: bytes) -> int:
    """Return the id of the lease."""
    document = fields.parse(body)
    lease = fields.integer(document, "ID")
    if fields.string(document, "error"):
        raise WireError(f"error: {document['error']}")
    if lease == 0:
        raise WireError("ID: missing")
    return lease


def decode_keep_alive(body: bytes) -> int:
    """Return the seconds that the lease now has; 0: it has expired."""
    return fields.integer(_result(fields.parse(body)), "TTL")


def decode_kept(line: bytes) -> tuple[int, int]:
    """Return one of several leases that were renewed in one request, and the seconds that it now has."""
    result = _result(fields.parse(line))
    return fields.integer(result, "ID"), fields.integer(result, "TTL")


def decode_token(body: bytes) -> str:
    token = fields.string(fields.parse(body), "token")
    if not token:
        raise WireError("token: missing")
    return token


def decode_watch_line(line: bytes) -> WatchAnswer:
    """Read one line of a watch.

    Raises:
        StreamFailure: The store ended the watch with an error.
        WireError: The line is not what the gateway says.
    """
    result = _result(fields.parse(line))
    return WatchAnswer(
        watch_id=fields.integer(result, "watch_id"),
        revision=_revision(result),
        created=fields.flag(result, "created"),
        canceled=fields.flag(result, "canceled"),
        cancel_reason=fields.string(result, "cancel_reason"),
        compact_revision=fields.integer(result, "compact_revision"),
        events=tuple(_event(item) for item in fields.objects(result, "events")),
        cluster=_cluster(result),
        lease=fields.integer(result, "ID"),
        ttl_s=fields.integer(result, "TTL"),
    )


class StreamFailure(WireError):
    """A stream's line carries an error instead of a result."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def decode_failure(body: bytes) -> Failure:
    """Read an error answer; a body that is not etcd's gives code 0 and its first characters as message."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return Failure(0, body[:200].decode(errors="replace").strip())
    # A streaming call wraps its error once more.
    inner = document.get("error")
    return _failure(inner if isinstance(inner, dict) else document)


# --- parts


def _failure(document: Mapping[str, Any]) -> Failure:
    code = document.get("code", document.get("grpc_code", 0))
    message = document.get("message") or document.get("error") or ""
    return Failure(code if type(code) is int else 0, message if isinstance(message, str) else repr(message))


def _put(put: Put) -> dict[str, Any]:
    body = {"key": fields.text(put.key), "value": fields.text(put.value)}
    if put.lease:
        body["lease"] = str(put.lease)
    return body


def _delete(delete: Delete) -> dict[str, Any]:
    body = {"key": fields.text(delete.key)}
    if delete.prefix:
        body["range_end"] = fields.text(prefix_end(delete.key))
    return body


def _operation(operation: Put | Delete) -> dict[str, Any]:
    if isinstance(operation, Put):
        return {"request_put": _put(operation)}
    return {"request_delete_range": _delete(operation)}


def _compare(compare: Compare) -> dict[str, Any]:
    body: dict[str, Any] = {"key": fields.text(compare.key), "result": "EQUAL"}
    match compare:
        case Compare(create_revision=int(number), mod_revision=None, lease=None):
            return {**body, "target": "CREATE", "create_revision": str(number)}
        case Compare(create_revision=None, mod_revision=int(number), lease=None):
            return {**body, "target": "MOD", "mod_revision": str(number)}
        case Compare(create_revision=None, mod_revision=None, lease=int(number)):
            return {**body, "target": "LEASE", "lease": str(number)}
        case _:
            raise ValueError(f"compare of {compare.key!r}: give one of create_revision, mod_revision and lease")


def _target(target: WatchTarget) -> dict[str, Any]:
    body: dict[str, Any] = {
        "key": fields.text(target.key),
        "watch_id": str(target.watch_id),
        "progress_notify": True,
    }
    if target.prefix:
        body["range_end"] = fields.text(prefix_end(target.key))
    if target.start_revision:
        body["start_revision"] = str(target.start_revision)
    return body


def _result(document: dict[str, Any]) -> dict[str, Any]:
    error = document.get("error")
    if error is not None:
        raise StreamFailure(_failure(error if isinstance(error, dict) else document))
    return fields.nested(document, "result")


def _revision(document: Mapping[str, Any]) -> int:
    return fields.integer(fields.nested(document, "header"), "revision")


def _cluster(document: Mapping[str, Any]) -> int:
    return fields.integer(fields.nested(document, "header"), "cluster_id")


def _key_value(document: Mapping[str, Any]) -> KeyValue:
    return KeyValue(
        key=fields.key(document),
        value=fields.data(document, "value"),
        create_revision=fields.integer(document, "create_revision"),
        mod_revision=fields.integer(document, "mod_revision"),
        lease=fields.integer(document, "lease"),
    )


def _event(document: Mapping[str, Any]) -> Changed | Removed:
    kind = fields.string(document, "type") or "PUT"
    key_value = fields.nested(document, "kv")
    revision = fields.integer(key_value, "mod_revision")
    if kind == "PUT":
        return Changed(_key_value(key_value), revision)
    if kind == "DELETE":
        return Removed(fields.key(key_value), revision)
    raise WireError(f"type: must be PUT or DELETE, not {kind!r}")
