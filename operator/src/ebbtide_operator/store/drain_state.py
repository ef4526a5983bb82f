"""The protocol's records, typed: reads from a mirror that one watch feeds, writes that only a leader can do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from ebbtide.protocol import DEFAULT_PREFIX, DrainRecord, Keys, Order, Phase
from ebbtide_operator.core.model import ReportView, WorkloadKey
from ebbtide_operator.ports import Compare, Delete, KeyValue, Put, Store, StoreUnavailable
from ebbtide_operator.store.leadership import Leadership
from ebbtide_operator.store.mirror import Listener, Mirror, Subscription
from ebbtide_operator.store.requests import Requests

LEADER_TTL_S = 15
PROBE_S = 2.0
"""How often to ask the store whether it lives: a watch alone cannot tell silence from death."""
BEHIND_S = 1.0
"""How long the watch may take to tell what the store has."""
FOREIGN_S = 30.0
RECORDS_SHOWN = 10
RECORDS_PER_WORKLOAD = 50
RECORDS_IN_ALL = 10_000
RECORDS_AGE_S = 30 * 86400.0
MOST_DELETIONS = 100
"""In one transaction: etcd takes 128 operations."""

logger = logging.getLogger(__name__)


class MirroredDrainState:
    """Implements `ports.DrainState`.

    Run `run()` as a task: it feeds the mirror. Where this replica leads, run `hold_leadership()` as a task too.

    Args:
        store: The store.
        on_change: Called for each record that changed, with its namespace and the pod's UID or the workload's
            `kind/name`; it must not wait.
        prefix: Prefix of every key.
        clock: Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        on_change: Listener = lambda namespace, uid, workload: None,  # noqa: ARG005
        *,
        prefix: str = DEFAULT_PREFIX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = Keys(prefix)
        self.mirror = Mirror(self.keys, clock, on_change)
        self._store = store
        self._clock = clock
        self._leadership = Leadership(store, self.keys, LEADER_TTL_S)
        self._requests = Requests(store, self.keys, self.mirror, clock)
        self._synced = asyncio.Event()
        self._healthy_at = clock()
        self._full = False
        self._verify_after = 0.0

    # --- its life

    async def run(self) -> None:
        """Feed the mirror until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._probe())

    async def synced(self) -> None:
        """Wait until the mirror is complete."""
        await self._synced.wait()

    @property
    def healthy(self) -> bool:
        return self._synced.is_set() and self._store.healthy and not self._full

    @property
    def unhealthy_since(self) -> float | None:
        """Unix time at which the store was last known to answer and to have room; None while it is healthy."""
        return None if self.healthy else self._healthy_at

    # --- leadership

    @property
    def epoch(self) -> int:
        """Epoch of our leadership; 0 without, and until all that earlier leaders wrote is in the mirror."""
        epoch = self._leadership.epoch
        return epoch if self.mirror.revision >= epoch else 0

    @property
    def leader(self) -> str:
        """Identity of the operator that holds the leader key; empty without one."""
        return self.mirror.leader.identity if self.mirror.leader else ""

    async def lead(self, identity: str) -> int:
        """Become the leader and return the epoch, once everything that earlier leaders wrote is in the mirror.

        Raises:
            Deposed: Others keep taking it away.
            StoreUnavailable: The store did not answer.
        """
        epoch = await self._leadership.take(identity)
        await self.mirror.reached(epoch)
        return epoch

    async def renew(self) -> None:
        """Keep leading; raises Deposed and StoreUnavailable."""
        await self._leadership.renew()

    async def resign(self) -> None:
        """Stop leading; never fails."""
        await self._leadership.resign()

    async def hold_leadership(
        self,
        identity: str,
        *,
        may_lead: Callable[[], bool] = lambda: True,
        began: Callable[[int], None] = lambda epoch: None,  # noqa: ARG005
    ) -> None:
        """Lead until cancelled, through outages of the store; resign at the end.

        Args:
            identity: Who we are.
            may_lead: Whether we are still elected; asked before the leader key is taken.
            began: Called with each new epoch, once `epoch` shows it: decide everything again.
        """

        async def announce(epoch: int) -> None:
            await self.mirror.reached(epoch)
            if self.epoch == epoch:
                began(epoch)

        async with asyncio.TaskGroup() as tasks:
            await self._leadership.hold(identity, may_lead, lambda epoch: tasks.create_task(announce(epoch)))

    # --- reads

    def order(self, namespace: str, uid: str) -> Order | None:
        return self.mirror.orders.get(namespace, {}).get(uid)

    def orders(self, namespace: str) -> Mapping[str, Order]:
        return dict(self.mirror.orders.get(namespace, {}))

    def ordered(self) -> frozenset[WorkloadKey]:
        """Return the workloads that an order names, also those that are gone."""
        names = {(namespace, one.workload) for namespace, some in self.mirror.orders.items() for one in some.values()}
        return frozenset(
            WorkloadKey(namespace, kind, name)
            for namespace, (kind, slash, name) in ((namespace, named.partition("/")) for namespace, named in names)
            if slash
        )

    def report(self, namespace: str, uid: str) -> ReportView | None:
        return self.mirror.reports.get(namespace, {}).get(uid)

    def requested(self, namespace: str) -> frozenset[str]:
        return frozenset(self.mirror.requests.get(namespace, ()))

    def phase(self, key: WorkloadKey) -> tuple[Phase, int, float] | None:
        return self.mirror.phases.get(key)

    def records(self, key: WorkloadKey) -> tuple[DrainRecord, ...]:
        of_workload = self.mirror.records.get(key, {})
        newest = sorted(of_workload, reverse=True)[:RECORDS_SHOWN]
        return tuple(of_workload[name] for name in newest)

    @property
    def quarantined(self) -> Mapping[str, str]:
        """What is wrong with the records that cannot be read, by key."""
        return self.mirror.quarantined

    def subscribe(self, keys: Iterable[str]) -> Subscription:
        """Follow some keys, for the relay; close the subscription when done."""
        return self.mirror.subscribe(keys)

    # --- writes

    async def send_order(self, namespace: str, uid: str, order: Order) -> None:
        """Write a pod's order; it must carry our present epoch."""
        await self._put(self.keys.order(namespace, uid), order.encode(), epoch=order.epoch)

    async def publish_phase(self, key: WorkloadKey, phase: Phase) -> None:
        await self._put(self.keys.phase(key.namespace, key.kind, key.name), phase.encode())

    async def remove_phase(self, key: WorkloadKey) -> None:
        await self._delete([self.keys.phase(key.namespace, key.kind, key.name)])

    async def forget(self, namespace: str, uid: str) -> None:
        """Delete the order, the report and the request of a pod, in one step."""
        await self._delete(self._keys_of(namespace, uid))

    def _keys_of(self, namespace: str, uid: str) -> list[str]:
        return [self.keys.order(namespace, uid), self.keys.report(namespace, uid), self.keys.request(namespace, uid)]

    async def write_record(self, key: WorkloadKey, record: DrainRecord) -> None:
        """Write down the end of a drain; the oldest ones beyond the bounds go in the same step."""
        await self._write_record(key, record, ())

    async def end(self, key: WorkloadKey, record: DrainRecord) -> None:
        """Write the record of a pod that is gone, and forget the pod, in one step."""
        await self._write_record(key, record, self._keys_of(key.namespace, record.uid))

    async def _write_record(self, key: WorkloadKey, record: DrainRecord, with_it: Sequence[str]) -> None:
        name = self.keys.record(key.namespace, key.kind, key.name, record.ended_at, record.uid)
        others = sorted(self.mirror.records.get(key, {}).keys() - {name})
        surplus = others[: max(len(others) + 1 - RECORDS_PER_WORKLOAD, 0)]
        in_all = self.mirror.record_keys
        beyond = len(in_all) + 1 - len(surplus) - RECORDS_IN_ALL
        if beyond > 0:
            surplus += [old for old in in_all if old != name and old not in surplus][:beyond]
        gone = [*with_it, *surplus[:MOST_DELETIONS]]
        value = record.encode()
        revision = await self._leadership.write([Put(name, value), *(Delete(old) for old in gone)])
        assert revision is not None, "without further conditions a refusal is Deposed"
        for old in gone:
            self.mirror.unlearn(old, revision)
        self._learn(name, value, revision)

    async def post_request(self, namespace: str, uid: str, by: str) -> None:
        """Note that a controller asked to delete a pod; any replica may, and soon after another it costs nothing.

        Raises:
            StoreUnavailable: The store did not answer.
        """
        await self._requests.post(namespace, uid, by)

    async def sweep(
        self,
        pod_lives: Callable[[str, str], bool],
        workload_lives: Callable[[WorkloadKey], bool],
        *,
        older_than_s: float = 600.0,
    ) -> int:
        """Delete what nobody will: final reports without an order, phases of workloads that are gone, old history.

        Args:
            pod_lives: Whether a pod (namespace, UID) exists.
            workload_lives: Whether a workload is managed.
            older_than_s: How long a record must have been seen: what was just written may be ahead of other caches.

        Returns:
            How many records were deleted.
        """
        before = self._clock() - older_than_s
        stale: list[KeyValue] = []
        for namespace, reports in self.mirror.reports.items():
            for uid, report in reports.items():
                final = not report.live and self.order(namespace, uid) is None
                if final and report.received_at < before and not pod_lives(namespace, uid):
                    stale.append(self.mirror.values[self.keys.report(namespace, uid)])
        for key, (_phase, _revision, seen_at) in self.mirror.phases.items():
            if seen_at < before and not workload_lives(key):
                stale.append(self.mirror.values[self.keys.phase(key.namespace, key.kind, key.name)])
        swept = 0
        for key_value in stale:
            unchanged = Compare(key_value.key, mod_revision=key_value.mod_revision)
            revision = await self._leadership.write([Delete(key_value.key)], compare=[unchanged])
            if revision is not None:
                self.mirror.unlearn(key_value.key, revision)
                swept += 1
        expired = self._expired_records()[:MOST_DELETIONS]
        if expired:
            await self._delete(expired)
        return swept + len(expired)

    def _expired_records(self) -> list[str]:
        """Return history that is too old, by its keys: also what cannot be read, which no other bound counts."""
        youngest = self.keys.record("", "", "", self._clock() - RECORDS_AGE_S, "").rpartition("/")[2]
        return sorted(
            key for key in self.mirror.values if key.startswith(self.keys.records) and key.rpartition("/")[2] < youngest
        )

    async def _put(self, key: str, value: bytes, *, epoch: int | None = None) -> None:
        revision = await self._leadership.write([Put(key, value)], epoch=epoch)
        assert revision is not None, "without further conditions a refusal is Deposed"
        self._learn(key, value, revision)

    async def _delete(self, keys: list[str]) -> None:
        revision = await self._leadership.write([Delete(key) for key in keys])
        assert revision is not None, "without further conditions a refusal is Deposed"
        for key in keys:
            self.mirror.unlearn(key, revision)

    def _learn(self, key: str, value: bytes, revision: int) -> None:
        # The next decision must not be made on what was true before this write.
        known = self.mirror.values.get(key)
        self.mirror.learn(KeyValue(key, value, known.create_revision if known else revision, revision))

    async def _follow(self) -> None:
        prefix = f"{self.keys.prefix}/"
        key_values, revision = await self._list(prefix)
        self.mirror.replace(key_values, revision)
        self._synced.set()
        self._note_health()
        watch = self._store.watch(prefix, revision)
        async with contextlib.aclosing(watch) as batches:
            async for batch in batches:
                self.mirror.apply(batch)
                self._note_health()

    async def _list(self, prefix: str) -> tuple[tuple[KeyValue, ...], int]:
        while True:
            try:
                return await self._store.range(prefix)
            except StoreUnavailable as error:
                logger.warning("store.list_failed", extra={"error": str(error)})
                await asyncio.sleep(PROBE_S / 2)

    async def _probe(self) -> None:
        while True:
            # First: where that fails, the read still says whether the store answers.
            await self._look_for_room()
            try:
                _, revision = await self._store.range(self.keys.leader)
                if self._synced.is_set():
                    await self._verify(revision)
            except StoreUnavailable as error:
                logger.debug("store.probe_failed", extra={"error": str(error)})
            self._note_health()
            await asyncio.sleep(PROBE_S)

    async def _look_for_room(self) -> None:
        """Find out whether the store is full: to reads it answers as ever, and who only reads has to know as well."""
        try:
            full = (await self._store.status()).full
        except StoreUnavailable as error:
            logger.debug("store.status_failed", extra={"error": str(error)})
            return
        if full is not self._full:
            self._full = full
            logger.warning("store.full" if full else "store.has_room")

    async def _verify(self, revision: int) -> None:
        """Find out whether the watch tells everything: a dead connection is as silent as a quiet store.

        Pods would take a replica that stays behind the others for a store that began anew.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEHIND_S):
                await self.mirror.reached(revision)
                return
        if time.monotonic() < self._verify_after:
            return
        key_values, revision = await self._store.range(f"{self.keys.prefix}/")
        if self.mirror.lacks(key_values, revision):
            logger.warning("store.watch.stale", extra={"revision": self.mirror.revision, "store": revision})
            self.mirror.replace(key_values, revision)
        else:
            # Somebody else writes to this store, outside of our prefix: listing everything each time is too dear.
            self._verify_after = time.monotonic() + FOREIGN_S
            self.mirror.reach(revision)

    def _note_health(self) -> None:
        if self.healthy:
            self._healthy_at = self._clock()
