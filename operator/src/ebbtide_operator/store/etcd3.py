"""The store port over gRPC, through the PyPI package `etcd3`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from ebbtide.etcd.errors import BadAnswer, Unavailable
from ebbtide.etcd.messages import Changed, KeyValue, RangeResult, Removed, TxnResult
from ebbtide.etcd.wire import Page, WatchAnswer, WatchTarget, prefix_end
from ebbtide_operator.ports import Compare, Delete, Put, StoreStatus
from ebbtide_operator.store.etcd import NO_SPACE, EtcdStore
from ebbtide_operator.store.etcd3_connection import Etcd3Connection, Pem, Stream

KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


class Etcd3(EtcdStore):
    """etcd over gRPC. Implements `ports.Store`.

    Use the gateway unless there is a reason: this needs the extra `etcd3`, and switches the whole process to protobuf's
    implementation in Python.

    Args:
        endpoints: Base URLs. They are asked in random order; one that answers is kept.
        pem: Asked for the certificates before each connection; for https endpoints.
        username: Log in with this name, and again when the store forgets the login.
        password: Asked for the name's password at each login.
        timeout_s: Limit of each call, over all endpoints it tries.
        inactivity_s: Seconds of silence after which a watch connects anew.

    Raises:
        Etcd3Missing: The package cannot be imported.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        pem: Callable[[], Pem | None] | None = None,
        username: str | None = None,
        password: Callable[[], str] | None = None,
        timeout_s: float = 3.0,
        inactivity_s: float = 20.0,
    ) -> None:
        connection = Etcd3Connection(endpoints, pem=pem, username=username, password=password, timeout_s=timeout_s)
        super().__init__(_Etcd3Calls(connection), inactivity_s=inactivity_s)


class _Etcd3Calls:
    """Implements `etcd.Calls`.

    The package's own calls are left aside where they hide what matters: the revision of a range, the lease in a
    comparison, that a lease has ended, how a watch ended.
    """

    def __init__(self, connection: Etcd3Connection) -> None:
        self._connection = connection
        self._rpc = connection.rpc
        self.session = connection.session

    async def get(self, key: str) -> Page:
        return await self._range(f"get {key}", self._rpc.RangeRequest(key=_bytes(key)))

    async def page(self, prefix: str, *, after: str | None, limit: int, revision: int) -> Page:
        request = self._rpc.RangeRequest(
            key=_bytes(prefix if after is None else after + "\0"),
            range_end=prefix_end(prefix),
            limit=limit,
            revision=revision,
        )
        return await self._range(f"range {prefix}", request)

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        request = self._rpc.TxnRequest(
            compare=[self._compare(one) for one in compare], success=[self._operation(one) for one in then]
        )
        answer = await self._connection.call("transaction", lambda client: client.kvstub.Txn, request, write=True)
        return TxnResult(answer.succeeded, answer.header.revision)

    async def grant(self, ttl_s: int, lease: int) -> int:
        request = self._rpc.LeaseGrantRequest(TTL=ttl_s, ID=lease)
        # Granted twice, an unnamed one ends by itself; a named one would not be found to be free.
        answer = await self._connection.call(
            "grant a lease", lambda client: client.leasestub.LeaseGrant, request, write=lease != 0
        )
        if answer.error or not answer.ID:
            raise BadAnswer(f"grant a lease: {answer.error or 'no id'}")
        return int(answer.ID)

    async def keep_alive(self, lease: int) -> int:
        request = self._rpc.LeaseKeepAliveRequest(ID=lease)
        # One request and one answer of what may be a stream: no thread has to wait for it.
        answer = await self._connection.call(
            "keep a lease alive",
            lambda client: client.channel.unary_unary(
                KEEP_ALIVE,
                request_serializer=self._rpc.LeaseKeepAliveRequest.SerializeToString,
                response_deserializer=self._rpc.LeaseKeepAliveResponse.FromString,
            ),
            request,
            write=False,
        )
        return int(answer.TTL)

    async def keep_all_alive(self, leases: Sequence[int]) -> Mapping[int, int]:
        requests = [self._rpc.LeaseKeepAliveRequest(ID=lease) for lease in leases]
        what = f"keep {len(leases)} leases alive"
        with self.session.answered():
            async with self._connection.stream(
                what, lambda client: self._rpc.LeaseStub(client.channel).LeaseKeepAlive, *requests
            ) as stream:
                answers = await stream.rest(self.session.timeout_s)
            if len(answers) != len(leases):
                raise Unavailable(f"{what}: {len(answers)} were answered")
        return {answer.ID: answer.TTL for answer in answers}

    async def revoke(self, lease: int) -> None:
        request = self._rpc.LeaseRevokeRequest(ID=lease)
        await self._connection.call("revoke a lease", lambda client: client.leasestub.LeaseRevoke, request, write=False)

    async def status(self) -> StoreStatus:
        request = self._rpc.StatusRequest()
        answer = await self._connection.call(
            "ask for its status", lambda client: client.maintenancestub.Status, request, write=False, optional=True
        )
        # The messages of the package are older than the fields for what is in use, for the quota, and for alarms, which
        # are text: it keeps what it does not know.
        return StoreStatus(answer.version, answer.dbSize, full=NO_SPACE.encode() in answer.SerializeToString())

    @contextlib.asynccontextmanager
    async def watch(self, target: WatchTarget) -> AsyncIterator[_StreamAnswers]:
        create = self._rpc.WatchCreateRequest(
            key=_bytes(target.key),
            range_end=prefix_end(target.key) if target.prefix else b"",
            start_revision=target.start_revision,
            progress_notify=True,
        )
        request = self._rpc.WatchRequest(create_request=create)
        async with self._connection.stream(
            "watch", lambda client: self._rpc.WatchStub(client.channel).Watch, request
        ) as stream:
            yield _StreamAnswers(stream, target.watch_id)

    async def close(self) -> None:
        await self._connection.close()

    async def _range(self, what: str, request: Any) -> Page:
        answer = await self._connection.call(what, lambda client: client.kvstub.Range, request, write=False)
        key_values = tuple(_key_value(item) for item in answer.kvs)
        return Page(RangeResult(key_values, answer.header.revision, answer.header.cluster_id), answer.more)

    def _compare(self, compare: Compare) -> Any:
        key = _bytes(compare.key)
        match compare:
            case Compare(create_revision=int(number), mod_revision=None, lease=None):
                return self._rpc.Compare(key=key, target="CREATE", create_revision=number)
            case Compare(create_revision=None, mod_revision=int(number), lease=None):
                return self._rpc.Compare(key=key, target="MOD", mod_revision=number)
            case Compare(create_revision=None, mod_revision=None, lease=int(number)):
                return self._rpc.Compare(key=key, target="LEASE", lease=number)
            case _:
                raise ValueError(f"compare of {compare.key!r}: give one of create_revision, mod_revision and lease")

    def _operation(self, operation: Put | Delete) -> Any:
        key = _bytes(operation.key)
        if isinstance(operation, Put):
            put = self._rpc.PutRequest(key=key, value=operation.value, lease=operation.lease)
            return self._rpc.RequestOp(request_put=put)
        end = prefix_end(operation.key) if operation.prefix else b""
        return self._rpc.RequestOp(request_delete_range=self._rpc.DeleteRangeRequest(key=key, range_end=end))


class _StreamAnswers:
    """Implements `following.Answers`."""

    def __init__(self, stream: Stream, watch_id: int) -> None:
        self._stream = stream
        self._watch_id = watch_id
        self.url = stream.endpoint.url

    async def next(self, patience_s: float) -> list[WatchAnswer]:
        answer = await self._stream.next(patience_s)
        return [
            WatchAnswer(
                # One watch on one stream; the package's messages cannot ask for an id.
                watch_id=self._watch_id,
                revision=answer.header.revision,
                created=answer.created,
                canceled=answer.canceled,
                cancel_reason=answer.cancel_reason,
                compact_revision=answer.compact_revision,
                events=tuple(_event(item) for item in answer.events),
                cluster=answer.header.cluster_id,
            )
        ]


def _event(event: Any) -> Changed | Removed:
    revision = event.kv.mod_revision
    # PUT is 0 and DELETE is 1 in etcd's messages.
    return Changed(_key_value(event.kv), revision) if event.type == 0 else Removed(_text(event.kv.key), revision)


def _key_value(item: Any) -> KeyValue:
    return KeyValue(_text(item.key), item.value, item.create_revision, item.mod_revision, item.lease)


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _text(key: bytes) -> str:
    """Read a key; bytes that are not UTF-8 survive as surrogates, so that the key can be written back."""
    return key.decode(errors="surrogateescape")
