"""The store port in a dict, with etcd's revisions, leases and compaction: the model the real one is compared with."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass

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


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    expires_at: float


class MemoryStore:
    """Implements `ports.Store` for one process.

    Set `available` to False for an outage: calls fail and watches are silent, as with an etcd that is away. Set `full`
    to True for a database without room: puts and new leases are refused.

    Args:
        clock: Monotonic seconds; where it is not the real one, call `expire_leases` after moving it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._revision = 1
        self._compacted = 0
        self._keys: dict[str, KeyValue] = {}
        self._history: list[tuple[int, tuple[Changed | Removed, ...]]] = []
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = itertools.count(1000)
        self._waiting: set[asyncio.Event] = set()
        self._available = True
        self.full = False
        self.cluster = 0
        self.writes = 0
        """Transactions that were applied and changed something."""

    @property
    def available(self) -> bool:
        return self._available

    @available.setter
    def available(self, value: bool) -> None:
        self._available = value
        self._wake()

    @property
    def healthy(self) -> bool:
        return self._available

    @property
    def revision(self) -> int:
        return self._revision

    async def get(self, key: str) -> KeyValue | None:
        self._check()
        return self._keys.get(key)

    async def range(self, prefix: str) -> tuple[tuple[KeyValue, ...], int]:
        self._check()
        found = (value for key, value in sorted(self._keys.items(), key=_by_bytes) if key.startswith(prefix))
        return tuple(found), self._revision

    async def transact(self, compare: Sequence[Compare], then: Sequence[Put | Delete]) -> int | None:
        self._check()
        if not all(self._holds(one) for one in compare):
            return None
        ended = next(
            (put for put in then if isinstance(put, Put) and put.lease and put.lease not in self._leases), None
        )
        if ended is not None:
            raise LeaseEnded(f"put {ended.key}: requested lease not found")
        _refuse_duplicates(then)
        self._check_room(any(isinstance(one, Put) for one in then))
        self._apply(then)
        return self._revision

    async def grant(self, ttl_s: int, *, lease: int = 0) -> int:
        self._check()
        self._check_room(True)
        if lease in self._leases:
            return 0
        granted = lease or next(self._lease_ids)
        self._leases[granted] = _Lease(ttl_s, self._clock() + ttl_s)
        self._wake()  # a watch may have to wait less long for the next expiry
        return granted

    async def keep_alive(self, lease: int) -> bool:
        self._check()
        known = self._leases.get(lease)
        if known is not None:
            known.expires_at = self._clock() + known.ttl_s
        return known is not None

    async def keep_all_alive(self, leases: Collection[int]) -> frozenset[int]:
        return frozenset([lease for lease in leases if not await self.keep_alive(lease)])

    async def revoke(self, lease: int) -> None:
        self._check()
        self._end(lease)

    async def status(self) -> StoreStatus:
        self._check()
        file = sum(len(key) + len(item.value) for key, item in self._keys.items())
        return StoreStatus("", file, full=self.full)

    async def close(self) -> None:
        """Nothing is held open."""

    def compact(self, revision: int | None = None) -> None:
        """Forget the history up to a revision; None: all of it."""
        self._compacted = self._revision if revision is None else revision
        self._history = [entry for entry in self._history if entry[0] > self._compacted]

    def expire_leases(self) -> None:
        """End every lease whose time is over."""
        now = self._clock()
        for lease in [lease for lease, held in self._leases.items() if held.expires_at <= now]:
            self._end(lease)

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Sequence[Changed | Removed | Resync], None]:
        woken = asyncio.Event()
        self._waiting.add(woken)
        try:
            while True:
                woken.clear()
                self.expire_leases()
                if self._available:
                    if after < self._compacted:
                        key_values, after = await self.range(prefix)
                        yield (Resync(key_values, after),)
                        continue
                    pending = [entry for entry in self._history if entry[0] > after]
                    after = max(after, self._revision)
                    for _revision, events in pending:
                        mine = tuple(event for event in events if _key_of(event).startswith(prefix))
                        if mine:
                            yield mine
                    if pending:
                        continue
                await self._until(woken)
        finally:
            self._waiting.discard(woken)

    async def _until(self, woken: asyncio.Event) -> None:
        next_at = min((held.expires_at for held in self._leases.values()), default=None)
        try:
            async with asyncio.timeout(None if next_at is None else max(next_at - self._clock(), 0.01)):
                await woken.wait()
        except TimeoutError:
            return  # a lease has expired

    def _check(self) -> None:
        if not self._available:
            raise StoreUnavailable("the store is away")
        self.expire_leases()

    def _check_room(self, wanted: bool) -> None:
        if self.full and wanted:
            raise StoreUnavailable("database space exceeded")

    def _holds(self, compare: Compare) -> bool:
        found = self._keys.get(compare.key)
        match compare:
            case Compare(create_revision=int(number), mod_revision=None, lease=None):
                return (found.create_revision if found else 0) == number
            case Compare(create_revision=None, mod_revision=int(number), lease=None):
                return (found.mod_revision if found else 0) == number
            case Compare(create_revision=None, mod_revision=None, lease=int(number)):
                return (found.lease if found else 0) == number
            case _:
                raise ValueError(f"compare of {compare.key!r}: give one of create_revision, mod_revision and lease")

    def _apply(self, then: Sequence[Put | Delete]) -> None:
        revision = self._revision + 1
        events: list[Changed | Removed] = []
        for operation in then:
            if isinstance(operation, Put):
                before = self._keys.get(operation.key)
                created = before.create_revision if before else revision
                value = KeyValue(operation.key, operation.value, created, revision, operation.lease)
                self._keys[operation.key] = value
                events.append(Changed(value, revision))
            else:
                for key in sorted(key for key in self._keys if _covers(operation, key)):
                    del self._keys[key]
                    events.append(Removed(key, revision))
        if events:
            self._revision = revision
            self._history.append((revision, tuple(events)))
            self.writes += 1
            self._wake()

    def _end(self, lease: int) -> None:
        if self._leases.pop(lease, None) is not None:
            self._apply([Delete(key) for key, value in self._keys.items() if value.lease == lease])

    def _wake(self) -> None:
        for woken in self._waiting:
            woken.set()


def _by_bytes(item: tuple[str, KeyValue]) -> bytes:
    return item[0].encode(errors="surrogateescape")


def _key_of(event: Changed | Removed) -> str:
    return event.key_value.key if isinstance(event, Changed) else event.key


def _covers(delete: Delete, key: str) -> bool:
    return key.startswith(delete.key) if delete.prefix else key == delete.key


def _refuse_duplicates(then: Sequence[Put | Delete]) -> None:
    """Refuse what etcd refuses: a transaction that writes a key twice, or writes one that it deletes."""
    written: set[str] = set()
    for put in then:
        if isinstance(put, Put):
            others = [one for one in then if isinstance(one, Delete) and _covers(one, put.key)]
            if put.key in written or others:
                raise StoreUnavailable(f"transaction: duplicate key given in txn request: {put.key}")
            written.add(put.key)
