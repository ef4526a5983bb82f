"""The store port over etcd's v3 JSON gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TypeVar

from ebbtide.etcd import wire
from ebbtide.etcd.endpoints import Backoff
from ebbtide.etcd.errors import BadAnswer, Compacted, EtcdError, LeaseExists, LeaseNotFound, TimedOut, error_of
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.messages import RangeResult
from ebbtide.etcd.resume import Resumption
from ebbtide_operator.ports import (
    Changed,
    Compare,
    Delete,
    KeyValue,
    LeaseEnded,
    Put,
    Removed,
    Resync,
    StoreUnavailable,
)
from ebbtide_operator.store.connection import Connection

PAGE = 1000
"""Keys per page of a range: some hundred KiB."""
STEADY_S = 5.0
"""A connection that lived this long was a good one: its end is a first failure again."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Gateway:
    """etcd over HTTP. Implements `ports.Store`.

    Args:
        endpoints: Base URLs. They are asked in random order; one that answers is kept.
        tls: For https endpoints; etcd's gateway does not know a client by its certificate, so rights need a password.
        username: Log in with this name, and again when the store forgets the login.
        password: The name's password.
        timeout_s: Limit of each call, over all endpoints it tries.
        inactivity_s: Seconds of silence after which a watch connects anew.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None = None,
        username: str | None = None,
        password: str | None = None,
        timeout_s: float = 3.0,
        inactivity_s: float = 20.0,
    ) -> None:
        self._connection = Connection(endpoints, tls=tls, username=username, password=password, timeout_s=timeout_s)
        self._inactivity_s = inactivity_s
        self._watching: dict[Resumption, bool] = {}

    async def get(self, key: str) -> KeyValue | None:
        page = await self._ask(f"get {key}", wire.RANGE, wire.encode_range(key), wire.decode_range, write=False)
        return page.result.key_values[0] if page.result.key_values else None

    async def range(self, prefix: str) -> tuple[tuple[KeyValue, ...], int]:
        with _translated():
            result = await self._range(prefix)
        return result.key_values, result.revision

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> int | None:
        body = wire.encode_txn(compare, then)
        result = await self._ask("transaction", wire.TXN, body, wire.decode_txn, write=True)
        return result.revision if result.succeeded else None

    async def grant(self, ttl_s: int, *, lease: int = 0) -> int:
        try:
            # Granted twice, an unnamed one ends by itself; a named one would not be found to be free.
            return await self._ask(
                "grant a lease", wire.GRANT, wire.encode_grant(ttl_s, lease), wire.decode_grant, write=lease != 0
            )
        except _Exists:
            return 0

    async def keep_alive(self, lease: int) -> bool:
        body = wire.encode_lease(lease)
        try:
            left_s = await self._ask("keep a lease alive", wire.KEEP_ALIVE, body, wire.decode_keep_alive, write=False)
        except LeaseEnded:
            return False
        return left_s > 0

    async def revoke(self, lease: int) -> None:
        with contextlib.suppress(LeaseEnded):
            await self._ask("revoke a lease", wire.REVOKE, wire.encode_lease(lease), len, write=False)

    @property
    def healthy(self) -> bool:
        """True where the last call was answered and every watch is connected."""
        return self._connection.answers and all(self._watching.values())

    async def close(self) -> None:
        await self._connection.close()

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Sequence[Changed | Removed | Resync], None]:
        """Yield what happens under a prefix after a revision; see `ports.Store`.

        Close it (`contextlib.aclosing`) when done: its connection ends with it.
        """
        resumption = Resumption([prefix], prefix=True, after=after)
        backoff = Backoff(self._connection.chance)
        relist = False
        self._watching[resumption] = False
        try:
            while True:
                opened_at = time.monotonic()
                try:
                    if relist:
                        batch = resumption.relist([await self._range(prefix)], time.monotonic())
                        relist = False
                        yield batch.changes
                    async with contextlib.aclosing(self._follow(resumption)) as batches:
                        async for changes in batches:
                            yield changes
                except Compacted:
                    relist = True
                    await asyncio.sleep(backoff.next_s())
                except _Silence:
                    continue  # a fresh connection settles it, and resumes without a gap
                except EtcdError as error:
                    if self._watching[resumption]:
                        logger.warning("store.watch.lost", extra={"error": str(error)})
                    self._watching[resumption] = False
                    if time.monotonic() - opened_at > STEADY_S:
                        backoff.reset()
                    await asyncio.sleep(backoff.next_s())
        finally:
            del self._watching[resumption]

    async def _follow(self, resumption: Resumption) -> AsyncGenerator[Sequence[Changed | Removed | Resync], None]:
        async with self._connection.stream("watch", wire.WATCH, resumption.begin()) as lines:
            confirmed = False
            while True:
                try:
                    received = await lines.next(self._inactivity_s if confirmed else self._connection.timeout_s)
                except TimedOut:
                    if confirmed:
                        raise _Silence from None
                    raise
                for line in received:
                    batch = resumption.take(line, time.monotonic(), lines.endpoint.url)
                    if not confirmed and resumption.confirmed:
                        confirmed = True
                        self._watching[resumption] = True
                    if batch is not None:
                        yield batch.changes

    async def _range(self, prefix: str) -> RangeResult:
        for _ in range(2):
            try:
                return await self._pages(prefix)
            except Compacted:
                continue  # between two pages: begin again
        return await self._pages(prefix)

    async def _pages(self, prefix: str) -> RangeResult:
        key_values: list[KeyValue] = []
        revision = 0
        after: str | None = None
        while True:
            body = wire.encode_range(prefix, prefix=True, after=after, limit=PAGE, revision=revision)
            page = await self._request(f"range {prefix}", wire.RANGE, body, wire.decode_range, write=False)
            key_values += page.result.key_values
            # The first page's revision: the later ones are read as of it.
            revision = revision or page.result.revision
            if not page.more or not page.result.key_values:
                return RangeResult(tuple(key_values), revision)
            after = key_values[-1].key

    async def _ask(self, what: str, path: str, body: bytes, decode: Callable[[bytes], T], *, write: bool) -> T:
        with _translated():
            return await self._request(what, path, body, decode, write=write)

    async def _request(self, what: str, path: str, body: bytes, decode: Callable[[bytes], T], *, write: bool) -> T:
        answer = await self._connection.call(what, path, body, write=write)
        try:
            return decode(answer)
        except wire.StreamFailure as error:
            raise error_of(what, 200, error.failure, endpoint=None, write=write) from error
        except WireError as error:
            raise BadAnswer(f"{what}: {error}", may_have_happened=write) from error


class _Silence(Exception):
    """A connection that delivered has been quiet for long: it may be dead, or there is nothing to say."""


class _Exists(Exception):
    """The lease id is in use."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Speak the port's language: what the operator can do about it, not what went wrong below."""
    try:
        yield
    except LeaseNotFound as error:
        raise LeaseEnded(str(error)) from error
    except LeaseExists as error:
        raise _Exists from error
    except EtcdError as error:
        raise StoreUnavailable(str(error), uncertain=error.may_have_happened) from error
