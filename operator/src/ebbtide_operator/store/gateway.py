"""The store port over etcd's v3 JSON gateway."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeVar

from ebbtide.etcd import fields, wire
from ebbtide.etcd.errors import BadAnswer, error_of
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.messages import TxnResult
from ebbtide.etcd.resume import decode_answer
from ebbtide_operator.ports import Compare, Delete, Put, StoreStatus
from ebbtide_operator.store.connection import Connection, Lines
from ebbtide_operator.store.etcd import NO_SPACE, EtcdStore

STATUS = "/v3/maintenance/status"

T = TypeVar("T")


class Gateway(EtcdStore):
    """etcd over HTTP. Implements `ports.Store`.

    Args:
        endpoints: Base URLs. They are asked in random order; one that answers is kept.
        tls: Asked for the context of each request to https endpoints; None: the system's authorities. etcd's gateway
            does not know a client by its certificate, so rights need a password.
        username: Log in with this name, and again when the store forgets the login.
        password: Asked for the name's password at each login.
        timeout_s: Limit of each call, over all endpoints it tries.
        inactivity_s: Seconds of silence after which a watch connects anew.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        username: str | None = None,
        password: Callable[[], str] | None = None,
        timeout_s: float = 3.0,
        inactivity_s: float = 20.0,
    ) -> None:
        connection = Connection(endpoints, tls=tls, username=username, password=password, timeout_s=timeout_s)
        super().__init__(_GatewayCalls(connection), inactivity_s=inactivity_s)


class _GatewayCalls:
    """Implements `etcd.Calls`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.session = connection.session

    async def get(self, key: str) -> wire.Page:
        return await self._ask(f"get {key}", wire.RANGE, wire.encode_range(key), wire.decode_range, write=False)

    async def page(self, prefix: str, *, after: str | None, limit: int, revision: int) -> wire.Page:
        body = wire.encode_range(prefix, prefix=True, after=after, limit=limit, revision=revision)
        return await self._ask(f"range {prefix}", wire.RANGE, body, wire.decode_range, write=False)

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        return await self._ask("transaction", wire.TXN, wire.encode_txn(compare, then), wire.decode_txn, write=True)

    async def grant(self, ttl_s: int, lease: int) -> int:
        # Granted twice, an unnamed one ends by itself; a named one would not be found to be free.
        body = wire.encode_grant(ttl_s, lease)
        return await self._ask("grant a lease", wire.GRANT, body, wire.decode_grant, write=lease != 0)

    async def keep_alive(self, lease: int) -> int:
        body = wire.encode_lease(lease)
        return await self._ask("keep a lease alive", wire.KEEP_ALIVE, body, wire.decode_keep_alive, write=False)

    async def keep_all_alive(self, leases: Sequence[int]) -> Mapping[int, int]:
        # The gateway takes the body for a stream of requests, and gives the answers as lines.
        body = b"\n".join(map(wire.encode_lease, leases))
        return await self._ask(
            f"keep {len(leases)} leases alive",
            wire.KEEP_ALIVE,
            body,
            lambda answer: _decode_all_kept(answer, len(leases)),
            write=False,
        )

    async def revoke(self, lease: int) -> None:
        await self._ask("revoke a lease", wire.REVOKE, wire.encode_lease(lease), len, write=False)

    async def status(self) -> StoreStatus:
        return await self._ask("ask for its status", STATUS, b"{}", _decode_status, write=False, optional=True)

    @contextlib.asynccontextmanager
    async def watch(self, target: wire.WatchTarget) -> AsyncIterator[_LineAnswers]:
        async with self._connection.stream("watch", wire.WATCH, wire.encode_watch([target])) as lines:
            yield _LineAnswers(lines)

    async def close(self) -> None:
        await self._connection.close()

    async def _ask(
        self, what: str, path: str, body: bytes, decode: Callable[[bytes], T], *, write: bool, optional: bool = False
    ) -> T:
        answer = await self._connection.call(what, path, body, write=write, optional=optional)
        try:
            return decode(answer)
        except wire.StreamFailure as error:
            raise error_of(what, 200, error.failure, endpoint=None, write=write) from error
        except WireError as error:
            raise BadAnswer(f"{what}: {error}", may_have_happened=write) from error


def _decode_all_kept(body: bytes, count: int) -> Mapping[int, int]:
    kept = [wire.decode_kept(line) for line in body.splitlines() if line]
    if len(kept) != count:
        raise WireError(f"{len(kept)} answers to {count} requests")
    return dict(kept)


def _decode_status(body: bytes) -> StoreStatus:
    document = fields.parse(body)
    # etcd tells its quota from 3.6 on.
    in_use, quota = fields.integer(document, "dbSizeInUse"), fields.integer(document, "dbSizeQuota")
    return StoreStatus(
        fields.string(document, "version"),
        fields.integer(document, "dbSize"),
        in_use or None,
        quota or None,
        # Alarms are told as text, which differs by version: "memberID:1234 alarm:NOSPACE ".
        full=NO_SPACE in str(document.get("errors", "")),
    )


class _LineAnswers:
    """Implements `following.Answers`."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.url = lines.endpoint.url

    async def next(self, patience_s: float) -> list[wire.WatchAnswer]:
        return [decode_answer(line, self.url) for line in await self._lines.next(patience_s)]
