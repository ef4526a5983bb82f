"""The server's side of etcd's JSON gateway, as far as the relay serves it.

Strict where etcd is lenient: a field that the relay does not act on is refused, never ignored, so that nobody believes
to have got what he asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ebbtide.etcd import fields, wire
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.messages import Changed, KeyValue, Put, Removed
from ebbtide.etcd.wire import WatchTarget

MOST_WATCHES = 4
"""In one request."""
TTL_S = range(10, 121)
"""Seconds that a pod may ask a lease for."""


class Denial(Exception):
    """A request that is answered with an error: HTTP status, gRPC code, and what the caller reads."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    @property
    def body(self) -> bytes:
        return fields.dump({"error": self.message, "code": self.code, "message": self.message})


def forbidden(what: str) -> Denial:
    return Denial(403, wire.PERMISSION_DENIED, f"permission denied: {what}")


def decode_range(body: bytes) -> str:
    """Return the key that is asked for."""
    document = _only(fields.parse(body), {"key", "range_end", "limit", "serializable"})
    return _single_key(document)


def decode_put(body: bytes) -> Put:
    document = _only(fields.parse(body), {"key", "value", "lease"})
    return Put(fields.key(document), fields.data(document, "value"), fields.integer(document, "lease"))


def decode_grant(body: bytes) -> int:
    """Return the seconds that are asked for; the relay chooses the id itself."""
    document = _only(fields.parse(body), {"TTL", "ID"})
    if fields.integer(document, "ID"):
        raise forbidden("the relay chooses the id of a lease")
    return fields.integer(document, "TTL")


def decode_lease(body: bytes) -> int:
    return fields.integer(_only(fields.parse(body), {"ID"}), "ID")


def decode_watch(body: bytes) -> list[WatchTarget]:
    """Read the watches of one connection: objects, one after the other."""
    try:
        text = body.decode().strip()
    except UnicodeDecodeError as error:
        raise WireError(f"not UTF-8: {error}") from error
    decoder = json.JSONDecoder()
    targets: list[WatchTarget] = []
    while text:
        try:
            document, end = decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise WireError(f"not JSON: {error}") from error
        if not isinstance(document, dict):
            raise WireError("must be objects")
        text = text[end:].lstrip()
        create = fields.nested(_only(document, {"create_request"}), "create_request")
        targets.append(_target(create, default_id=len(targets)))
        if len(targets) > MOST_WATCHES:
            raise forbidden(f"more than {MOST_WATCHES} watches on one connection")
    if not targets:
        raise WireError("create_request: missing")
    if len({target.watch_id for target in targets}) < len(targets):
        raise WireError("watch_id: given twice")
    return targets


def encode_range(key_value: KeyValue | None, revision: int, cluster: int = 0) -> bytes:
    """Answer a range; `cluster` is etcd's id of the store, so that a pod notices that it was replaced."""
    document: dict[str, Any] = {"header": _header(revision, cluster)}
    if key_value is not None:
        document |= {"kvs": [_key_value(key_value)], "count": "1"}
    return fields.dump(document)


def encode_put(revision: int) -> bytes:
    return fields.dump({"header": _header(revision)})


def encode_grant(lease: int, ttl_s: int, revision: int) -> bytes:
    return fields.dump({"header": _header(revision), "ID": str(lease), "TTL": str(ttl_s)})


def encode_kept(lease: int, revision: int, *, alive: bool) -> bytes:
    """Answer a keep-alive; the seconds of an ended lease are left out, as every zero."""
    result: dict[str, Any] = {"header": _header(revision), "ID": str(lease)}
    if alive:
        result["TTL"] = str(TTL_S.start)
    return fields.dump({"result": result}) + b"\n"


def encode_end(denial: Denial) -> bytes:
    """End a watch with an error."""
    return fields.dump({"error": {"code": denial.code, "message": denial.message}}) + b"\n"


def encode_created(watch_id: int, revision: int, cluster: int = 0) -> bytes:
    return _line(watch_id, revision, {"created": True}, cluster)


def encode_progress(watch_id: int, revision: int) -> bytes:
    return _line(watch_id, revision, {})


def encode_compacted(watch_id: int, revision: int) -> bytes:
    return _line(watch_id, revision, {"canceled": True, "compact_revision": str(max(revision, 1))})


def encode_event(watch_id: int, revision: int, event: Changed | Removed) -> bytes:
    spelled: dict[str, Any] = (
        {"kv": _key_value(event.key_value)}
        if isinstance(event, Changed)
        else {"type": "DELETE", "kv": {"key": fields.text(event.key), "mod_revision": str(event.revision)}}
    )
    return _line(watch_id, revision, {"events": [spelled]})


def _line(watch_id: int, revision: int, rest: Mapping[str, Any], cluster: int = 0) -> bytes:
    result: dict[str, Any] = {"header": _header(revision, cluster)}
    if watch_id:
        result["watch_id"] = str(watch_id)
    return fields.dump({"result": {**result, **rest}}) + b"\n"


def _header(revision: int, cluster: int = 0) -> dict[str, str]:
    known = {"cluster_id": str(cluster)} if cluster else {}
    return {**known, "revision": str(revision)}


def _key_value(key_value: KeyValue) -> dict[str, str]:
    spelled = {
        "key": fields.text(key_value.key),
        "create_revision": str(key_value.create_revision),
        "mod_revision": str(key_value.mod_revision),
        "value": fields.text(key_value.value),
    }
    if key_value.lease:
        spelled["lease"] = str(key_value.lease)
    return spelled


def _target(document: dict[str, Any], default_id: int) -> WatchTarget:
    _only(document, {"key", "range_end", "watch_id", "start_revision", "progress_notify"})
    key = _single_key(document)
    fields.flag(document, "progress_notify")  # always on
    watch_id = fields.integer(document, "watch_id") if "watch_id" in document else default_id
    start_revision = fields.integer(document, "start_revision")
    if watch_id < 0 or start_revision < 0:
        raise WireError("watch_id and start_revision: must not be negative")
    return WatchTarget(watch_id, key, start_revision=start_revision)


def _single_key(document: dict[str, Any]) -> str:
    if fields.data(document, "range_end"):
        raise forbidden("ranges and prefixes are not served; ask for one key")
    return fields.key(document)


def _only(document: dict[str, Any], known: Sequence[str] | set[str]) -> dict[str, Any]:
    unknown = sorted(document.keys() - set(known))
    if unknown:
        raise WireError(f"{unknown[0][:40]}: not served by the relay; it takes {', '.join(sorted(known))}")
    return document
