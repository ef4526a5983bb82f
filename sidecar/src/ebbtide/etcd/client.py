"""The calls of etcd's key-value store that Ebbtide needs, synchronous."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from ebbtide.etcd import wire
from ebbtide.etcd.dial import never
from ebbtide.etcd.errors import BadAnswer, Compacted, LeaseNotFound, error_of
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.heartbeat import Heartbeat
from ebbtide.etcd.messages import Compare, Delete, KeyValue, Put, RangeResult, TxnResult
from ebbtide.etcd.transport import Transport
from ebbtide.etcd.watch import INACTIVITY_S, Watch

PAGE = 500
"""Keys per page of a range: far below the size at which etcd refuses an answer."""

T = TypeVar("T")


class EtcdClient:
    """Talk to etcd, or to Ebbtide's relay, through the v3 JSON gateway.

    Safe to use from several threads. After a fork the child may go on using it: it makes its own connections, and the
    parent's are left alone; a watch of the parent does not go on in the child. Every call raises `EtcdError`.

    Args:
        endpoints: Base URLs. They are asked in random order; one that answers is kept.
        tls: For https endpoints; None: the system's authorities.
        token: Asked for a bearer token at each request.
        username: Log in with this name, and again when the store forgets the login.
        password: The name's password.
        timeout_s: Limit of each call, over all endpoints it tries.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None = None,
        token: Callable[[], str] | None = None,
        username: str | None = None,
        password: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self._transport = Transport(
            endpoints, tls=tls, token=token, username=username, password=password, timeout_s=timeout_s
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, key: str) -> KeyValue | None:
        """Return a key as the majority of the store holds it; None: there is no such key."""
        key_values = self._read(key).key_values
        return key_values[0] if key_values else None

    def range(self, prefix: str) -> RangeResult:
        """Return every key that starts with `prefix`, sorted, all as of one revision."""
        return self._range(prefix)

    def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key and return the revision.

        Args:
            key: The key.
            value: Its new value.
            lease: The key is deleted when this lease ends; 0: never.

        Raises:
            LeaseNotFound: The lease has ended.
            EtcdError: It failed; `may_have_happened` says whether the value may have been written all the same.
        """
        body = wire.encode_put(Put(key, value, lease))
        return self._ask(f"put {key}", wire.PUT, body, wire.decode_revision, write=True)

    def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or every key that starts with it, and return how many there were."""
        body = wire.encode_delete(Delete(key, prefix))
        return self._ask(f"delete {key}", wire.DELETE, body, wire.decode_delete, write=True)

    def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        """Apply `then` in one step if every comparison holds."""
        body = wire.encode_txn(compare, then)
        return self._ask("transaction", wire.TXN, body, wire.decode_txn, write=True)

    def grant(self, ttl_s: int) -> int:
        """Return the id of a new lease that ends `ttl_s` seconds after its last keep-alive."""
        # Granted twice, the first one ends by itself.
        return self._ask("grant a lease", wire.GRANT, wire.encode_grant(ttl_s), wire.decode_grant, write=False)

    def keep_alive(self, lease: int) -> bool:
        """Renew a lease; False: it has ended, and its keys are gone."""
        body = wire.encode_lease(lease)
        try:
            left_s = self._ask("keep a lease alive", wire.KEEP_ALIVE, body, wire.decode_keep_alive, write=False)
        except LeaseNotFound:
            return False
        return left_s > 0

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; one that has ended is no error."""
        try:
            self._ask("revoke a lease", wire.REVOKE, wire.encode_lease(lease), len, write=False)
        except LeaseNotFound:
            return

    def watch(
        self,
        keys: Sequence[str],
        *,
        stop: threading.Event,
        prefix: bool = False,
        inactivity_s: float = INACTIVITY_S,
        heartbeat: Heartbeat | None = None,
    ) -> Watch:
        """Watch keys, or everything under prefixes, over one connection.

        The first batch is a `Resync` with the values there are, then come all changes, without a gap: after a broken
        connection the watch goes on from the last revision it saw, and where the store has compacted that away there is
        another `Resync`, followed by a `Removed` for each key that is gone. It retries for ever, and raises only
        `Closed`. Iterate in one thread; the iteration ends within half a second of `stop`.

        Args:
            keys: The keys or prefixes.
            stop: Ends the watch.
            prefix: Watch everything that starts with one of `keys`.
            inactivity_s: Seconds of silence after which to connect anew; more where beats are taken, whose answers are
                far between. Below the store's progress interval it costs a new connection each time, and no event.
            heartbeat: Keep its lease alive over the same connection, where the server takes that.
        """
        return Watch(
            self._transport,
            self._range if prefix else self._read,
            keys,
            stop=stop,
            prefix=prefix,
            inactivity_s=inactivity_s,
            heartbeat=heartbeat,
        )

    def close(self) -> None:
        """Close every connection; calls and watches that still run fail with `Closed`."""
        self._transport.close()

    def _read(self, key: str, interrupted: Callable[[], bool] = never) -> RangeResult:
        return self._page(f"get {key}", wire.encode_range(key), interrupted).result

    def _range(self, prefix: str, interrupted: Callable[[], bool] = never) -> RangeResult:
        for _ in range(2):
            try:
                return self._pages(prefix, interrupted)
            except Compacted:
                continue  # between two pages: begin again
        return self._pages(prefix, interrupted)

    def _pages(self, prefix: str, interrupted: Callable[[], bool]) -> RangeResult:
        what = f"range {prefix}"
        page = self._page(what, wire.encode_range(prefix, prefix=True, limit=PAGE), interrupted)
        revision = page.result.revision
        key_values = list(page.result.key_values)
        while page.more and page.result.key_values:
            body = wire.encode_range(prefix, prefix=True, after=key_values[-1].key, limit=PAGE, revision=revision)
            page = self._page(what, body, interrupted)
            key_values += page.result.key_values
        return RangeResult(tuple(key_values), revision, page.result.cluster)

    def _page(self, what: str, body: bytes, interrupted: Callable[[], bool]) -> wire.Page:
        return self._ask(what, wire.RANGE, body, wire.decode_range, write=False, interrupted=interrupted)

    def _ask(
        self,
        what: str,
        path: str,
        body: bytes,
        decode: Callable[[bytes], T],
        *,
        write: bool,
        interrupted: Callable[[], bool] = never,
    ) -> T:
        answer = self._transport.call(what, path, body, write=write, interrupted=interrupted)
        try:
            return decode(answer)
        except wire.StreamFailure as error:
            raise error_of(what, 200, error.failure, endpoint=None, write=write) from error
        except WireError as error:
            raise BadAnswer(f"{what}: {error}", may_have_happened=write) from error
