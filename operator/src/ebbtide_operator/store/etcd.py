"""The store port over etcd, whatever the way there: paging, watches that resume, and the port's errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ebbtide.etcd.errors import Compacted, EtcdError, LeaseExists, LeaseNotFound, Unavailable
from ebbtide.etcd.messages import RangeResult, TxnResult
from ebbtide.etcd.wire import Page, WatchTarget
from ebbtide_operator.ports import (
    Changed,
    Compare,
    Delete,
    KeyValue,
    LeaseEnded,
    Put,
    Removed,
    Resync,
    StoreStatus,
    StoreUnavailable,
)
from ebbtide_operator.store.following import Follower
from ebbtide_operator.store.lanes import Answers
from ebbtide_operator.store.session import Session

PAGE = 1000
"""Keys per page of a range: some hundred KiB."""
BATCH = 500
"""Leases per request: etcd renews so many in some milliseconds."""
NO_SPACE = "NOSPACE"
"""The alarm of a member whose quota is spent. Every member knows of it, and all refuse writes until it is disarmed."""


class Calls(Protocol):
    """etcd's calls over one kind of connection. Each has a time limit of its own, and raises EtcdError."""

    @property
    def session(self) -> Session:
        """What it keeps between calls."""

    async def get(self, key: str) -> Page: ...

    async def page(self, prefix: str, *, after: str | None, limit: int, revision: int) -> Page: ...

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult: ...

    async def grant(self, ttl_s: int, lease: int) -> int: ...

    async def keep_alive(self, lease: int) -> int:
        """Return the seconds that the lease now has; 0: it has expired."""

    async def keep_all_alive(self, leases: Sequence[int]) -> Mapping[int, int]:
        """Return the seconds that each lease now has; 0, or none: it has expired."""

    async def revoke(self, lease: int) -> None: ...

    async def status(self) -> StoreStatus:
        """Not everybody may ask for it: that it is refused does not count against the session's `answers`."""

    def watch(self, target: WatchTarget) -> AbstractAsyncContextManager[Answers]:
        """Open one watch, over a connection that ends with it."""

    async def close(self) -> None: ...


class EtcdStore:
    """Implements `ports.Store`.

    Args:
        calls: The way to etcd.
        inactivity_s: Seconds of silence after which a watch connects anew.
    """

    def __init__(self, calls: Calls, *, inactivity_s: float) -> None:
        self._calls = calls
        self._follower = Follower(
            calls.watch,
            self._list,
            calls.session.chance,
            confirm_s=calls.session.timeout_s,
            inactivity_s=inactivity_s,
        )

    async def get(self, key: str) -> KeyValue | None:
        with _translated():
            page = await self._calls.get(key)
        return page.result.key_values[0] if page.result.key_values else None

    async def range(self, prefix: str) -> tuple[tuple[KeyValue, ...], int]:
        with _translated():
            result = await self._list(prefix)
        return result.key_values, result.revision

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> int | None:
        with _translated():
            result = await self._calls.transact(compare, then)
        if not result.succeeded:
            return None
        self._follower.wrote(then, result.revision)
        return result.revision

    async def grant(self, ttl_s: int, *, lease: int = 0) -> int:
        with _translated():
            try:
                return await self._calls.grant(ttl_s, lease)
            except LeaseExists:
                return 0

    async def keep_alive(self, lease: int) -> bool:
        with _translated():
            try:
                return await self._calls.keep_alive(lease) > 0
            except LeaseNotFound:
                return False

    async def keep_all_alive(self, leases: Collection[int]) -> frozenset[int]:
        ordered = list(leases)
        left_s: dict[int, int] = {}
        with _translated():
            for first in range(0, len(ordered), BATCH):
                left_s.update(await self._calls.keep_all_alive(ordered[first : first + BATCH]))
        return frozenset(lease for lease in ordered if left_s.get(lease, 0) <= 0)

    async def revoke(self, lease: int) -> None:
        with _translated(), contextlib.suppress(LeaseNotFound):
            await self._calls.revoke(lease)

    async def status(self) -> StoreStatus:
        with _translated():
            return await self._calls.status()

    def watch(self, prefix: str, after: int) -> AsyncGenerator[Sequence[Changed | Removed | Resync], None]:
        """Yield what happens under a prefix after a revision; see `ports.Store`.

        Close it (`contextlib.aclosing`) when done: its connection ends with it.
        """
        return self._follower.follow(prefix, after)

    @property
    def healthy(self) -> bool:
        """True where the last call was answered and every watch is connected."""
        return self._calls.session.answers and self._follower.connected

    @property
    def cluster(self) -> int:
        return self._follower.cluster

    @property
    def watching(self) -> bool:
        """True where there is a watch, and all are connected."""
        return self._follower.watching

    async def close(self) -> None:
        await self._calls.close()

    async def _list(self, prefix: str) -> RangeResult:
        for _ in range(2):
            try:
                return await self._pages(prefix)
            except Compacted:
                continue  # between two pages: begin again
        return await self._pages(prefix)

    async def _pages(self, prefix: str) -> RangeResult:
        key_values: list[KeyValue] = []
        revision = cluster = 0
        after: str | None = None
        while True:
            page = await self._calls.page(prefix, after=after, limit=PAGE, revision=revision)
            key_values += page.result.key_values
            # The first page's revision: the later ones are read as of it.
            revision = revision or page.result.revision
            if cluster not in (0, page.result.cluster):
                raise Unavailable(f"range {prefix}: the store was replaced between two pages")
            cluster = page.result.cluster
            if not page.more or not page.result.key_values:
                return RangeResult(tuple(key_values), revision, cluster)
            after = key_values[-1].key


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Speak the port's language: what the operator can do about it, not what went wrong below."""
    try:
        yield
    except LeaseNotFound as error:
        raise LeaseEnded(str(error)) from error
    except EtcdError as error:
        raise StoreUnavailable(str(error), uncertain=error.may_have_happened) from error
