"""Everything under the protocol's prefix, in memory and typed, as one watch tells it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ebbtide.protocol import DrainRecord, Keys, Leader, Order, Phase, RecordError, Report, Request
from ebbtide_operator.core.model import ReportView, WorkloadKey
from ebbtide_operator.ports import Changed, KeyValue, Removed, Resync
from ebbtide_operator.store.records import Address, Addresses, Kind

MOST_TOMBSTONES = 10_000
MOST_REASON = 300
"""Characters: the reason may quote what a pod wrote."""

Outer = TypeVar("Outer")
Inner = TypeVar("Inner")
Value = TypeVar("Value")
Listener = Callable[[str, str | None, str | None], None]
"""Called with the namespace, and the pod's UID or the workload's `kind/name`, of a record that changed."""

logger = logging.getLogger(__name__)


class Mirror:
    """A copy of the store. Not safe for threads.

    A record that cannot be read is as good as none: it is noted in `quarantined`, logged once, and never an error.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float], listener: Listener) -> None:
        self.revision = 0
        """Everything up to this revision of the store is in here."""
        self.values: dict[str, KeyValue] = {}
        self.leader: Leader | None = None
        self.orders: defaultdict[str, dict[str, Order]] = defaultdict(dict)
        self.reports: defaultdict[str, dict[str, ReportView]] = defaultdict(dict)
        self.requests: defaultdict[str, dict[str, Request]] = defaultdict(dict)
        self.phases: dict[WorkloadKey, tuple[Phase, int, float]] = {}
        self.records: defaultdict[WorkloadKey, dict[str, DrainRecord]] = defaultdict(dict)
        self.record_keys: dict[str, None] = {}
        """Keys of every history record, oldest first."""
        self.quarantined: dict[str, str] = {}
        """What is wrong with the records that cannot be read, by key."""
        self._addresses = Addresses(keys)
        self._clock = clock
        self._listener = listener
        self._floor = 0
        self._tombstones: dict[str, int] = {}
        self._subscriptions: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def apply(self, changes: Sequence[Changed | Removed | Resync]) -> None:
        """Take in one batch of the watch."""
        for change in changes:
            match change:
                case Changed():
                    self._put(change.key_value)
                    self._reach(change.revision)
                case Removed():
                    self._remove(change.key, change.revision)
                    self._reach(change.revision)
                case Resync():
                    self.replace(change.key_values, change.revision, restarted=change.restarted)

    def reach(self, revision: int) -> None:
        """Take note that everything up to a revision is in here."""
        self._reach(revision)

    def learn(self, key_value: KeyValue) -> None:
        """Take in what we wrote ourselves, before the watch tells it."""
        self._put(key_value)

    def unlearn(self, key: str, revision: int) -> None:
        """Take in what we deleted ourselves, before the watch tells it."""
        self._remove(key, revision)

    def replace(self, key_values: Iterable[KeyValue], revision: int, *, restarted: bool = False) -> None:
        """Become a list of everything; only what differs is told to listeners and subscribers."""
        if restarted:
            # Revisions began anew: nothing that was compared with them means anything.
            for subscription in {one for many in self._subscriptions.values() for one in many}:
                subscription.end()
            self._tombstones.clear()
        current = {key_value.key: key_value for key_value in key_values}
        for key in [key for key in self.values if key not in current]:
            self._remove(key, revision, force=restarted)
        # History first keeps its order: keys of one workload sort by time, those of several are merged by it.
        for key_value in sorted(current.values(), key=lambda item: item.mod_revision):
            self._put(key_value, force=restarted)
        for key in self.quarantined.keys() - current.keys():
            del self.quarantined[key]
        if restarted or self._floor == 0:
            self._floor = revision
        if restarted:
            # Who waits for a revision of the old count would wait for ever.
            self._reach(max((wanted for wanted, _ in self._waiting), default=0))
            self.revision = 0
        self._reach(revision)

    def lacks(self, key_values: Iterable[KeyValue], revision: int) -> bool:
        """Say whether a list of everything, as of a revision, has or leaves out something that is not known here."""
        current = {key_value.key: key_value.mod_revision for key_value in key_values}
        newer = any(
            mod_revision > (known.mod_revision if (known := self.values.get(key)) else self._tombstones.get(key, 0))
            for key, mod_revision in current.items()
            # No key of the protocol is ever known; a record that could not be read is, with its revision.
            if key in self.values or key not in self.quarantined
        )
        return newer or any(key not in current and one.mod_revision <= revision for key, one in self.values.items())

    def since(self, key: str, start_revision: int) -> Changed | Removed | None:
        """Return what a watch of one key from a revision on would end with.

        A deletion is repeated where it is not known whether it came before `start_revision`.
        """
        key_value = self.values.get(key)
        if key_value is not None:
            return Changed(key_value, key_value.mod_revision) if key_value.mod_revision >= start_revision else None
        removed = self._tombstones.get(key, self._floor)
        return Removed(key, removed) if removed >= start_revision else None

    def subscribe(self, keys: Iterable[str]) -> Subscription:
        """Follow some keys; close the subscription when done."""
        subscription = Subscription(self, tuple(keys))
        for key in subscription.keys:
            self._subscriptions[key].add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        for key in subscription.keys:
            followers = self._subscriptions.get(key)
            if followers is not None:
                followers.discard(subscription)
                if not followers:
                    del self._subscriptions[key]

    async def reached(self, revision: int) -> None:
        """Wait until everything up to a revision is in here."""
        if self.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (revision, future)
        self._waiting.append(entry)
        try:
            await future
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _reach(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        for entry in [entry for entry in self._waiting if entry[0] <= self.revision]:
            self._waiting.remove(entry)
            if not entry[1].done():
                entry[1].set_result(None)

    def _put(self, key_value: KeyValue, *, force: bool = False) -> None:
        key = key_value.key
        known = self.values.get(key)
        if known == key_value:
            return
        # The watch may be behind what we wrote ourselves.
        if not force and key_value.mod_revision <= (known.mod_revision if known else self._tombstones.get(key, 0)):
            return
        address = self._addresses.read(key)
        if address is None:
            self._quarantine(key_value, "no key of the protocol")
            return
        self.values[key] = key_value
        self._tombstones.pop(key, None)
        try:
            self._file(address, key_value)
        except (RecordError, RecursionError) as error:
            # What it said before is not true any more either.
            self._unfile(address, key)
            self._quarantine(key_value, str(error))
        else:
            self.quarantined.pop(key, None)
        self._tell(address, key)

    def _remove(self, key: str, revision: int, *, force: bool = False) -> None:
        self.quarantined.pop(key, None)
        known = self.values.get(key)
        if known is None or (known.mod_revision > revision and not force):
            return
        del self.values[key]
        address = self._addresses.read(key)
        assert address is not None, "only readable keys are mirrored"
        self._unfile(address, key)
        if address.kind is not Kind.RECORD:
            self._bury(key, revision)
        self._tell(address, key)

    def _bury(self, key: str, revision: int) -> None:
        self._tombstones.pop(key, None)
        self._tombstones[key] = revision
        while len(self._tombstones) > MOST_TOMBSTONES:
            oldest = next(iter(self._tombstones))
            self._floor = max(self._floor, self._tombstones.pop(oldest))

    def _file(self, address: Address, key_value: KeyValue) -> None:
        namespace, uid, value = address.namespace, address.uid, key_value.value
        match address.kind:
            case Kind.LEADER:
                self.leader = Leader.decode(value)
            case Kind.ORDER:
                self.orders[namespace][uid] = Order.decode(value)
            case Kind.REPORT:
                self.reports[namespace][uid] = ReportView(
                    Report.decode(value), live=key_value.lease != 0, received_at=self._clock()
                )
            case Kind.REQUEST:
                self.requests[namespace][uid] = Request.decode(value)
            case Kind.PHASE:
                assert address.workload is not None
                self.phases[address.workload] = (Phase.decode(value), key_value.mod_revision, self._clock())
            case Kind.RECORD:
                assert address.workload is not None
                self.records[address.workload][key_value.key] = DrainRecord.decode(value)
                self.record_keys[key_value.key] = None

    def _unfile(self, address: Address, key: str) -> None:
        match address.kind:
            case Kind.LEADER:
                self.leader = None
            case Kind.ORDER:
                _drop(self.orders, address.namespace, address.uid)
            case Kind.REPORT:
                _drop(self.reports, address.namespace, address.uid)
            case Kind.REQUEST:
                _drop(self.requests, address.namespace, address.uid)
            case Kind.PHASE:
                assert address.workload is not None
                self.phases.pop(address.workload, None)
            case Kind.RECORD:
                assert address.workload is not None
                _drop(self.records, address.workload, key)
                self.record_keys.pop(key, None)

    def _quarantine(self, key_value: KeyValue, reason: str) -> None:
        reason = reason[:MOST_REASON]
        if key_value.key not in self.quarantined:
            logger.warning("store.record.unreadable", extra={"key": key_value.key, "error": reason})
        self.quarantined[key_value.key] = reason

    def _tell(self, address: Address, key: str) -> None:
        for subscription in self._subscriptions.get(key, ()):
            subscription.offer(key)
        workload = address.workload
        if not address.namespace:
            return
        try:
            self._listener(
                address.namespace, address.uid or None, f"{workload.kind}/{workload.name}" if workload else None
            )
        except Exception:
            # A listener's mistake must not end the mirror, on which every promise rests.
            logger.exception("store.listener.failed", extra={"key": key})


class Subscription:
    """What changed under some keys; several changes of one key between two looks are one."""

    def __init__(self, mirror: Mirror, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.ended = False
        """True once the store began anew: what was seen means nothing any more."""
        self._mirror = mirror
        self._changed: dict[str, None] = {}
        self._news = asyncio.Event()

    async def wait(self) -> None:
        """Wait until something changed, or somebody woke it."""
        await self._news.wait()

    def take(self) -> list[str]:
        """Return the keys that changed since the last time."""
        changed = list(self._changed)
        self._changed.clear()
        if not self.ended:
            self._news.clear()
        return changed

    def offer(self, key: str) -> None:
        self._changed[key] = None
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    def wake(self) -> None:
        """End the present wait, whether something changed or not."""
        self._news.set()

    def close(self) -> None:
        self._mirror.unsubscribe(self)


def _drop(nested: defaultdict[Outer, dict[Inner, Value]], outer: Outer, inner: Inner) -> None:
    """Remove an entry, and the dictionary around it with its last one."""
    entries = nested.get(outer)
    if entries is not None:
        entries.pop(inner, None)
        if not entries:
            del nested[outer]
