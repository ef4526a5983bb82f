"""Gather, decide, apply: one pass over one workload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ebbtide.protocol import Order
from ebbtide_operator.apply import Applier
from ebbtide_operator.cluster.client import drain_name
from ebbtide_operator.cluster.informer import PodInformer
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core import reasons
from ebbtide_operator.core.decide import decide
from ebbtide_operator.core.model import (
    Mode,
    Notify,
    Plan,
    PodView,
    RemoveStatus,
    Snapshot,
    WorkloadKey,
    WorkloadView,
    WriteStatus,
)
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import Cluster, Conflict, DrainState

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 30.0
"""Every workload is looked at this often without being woken: no lost wake lasts longer. It costs no request
where nobody asks for a pod."""
TELL_AGAIN_S = 1.0
"""How soon to try again to write a status that could not be; doubled each time, up to `LOOK_AGAIN_S`."""
ORPHANED_FOR_S = 60.0
"""How long a workload must be gone before its pods that are not even being deleted are taken for orphans."""
MISSING_FOR_S = 1.0
"""How long pods must be missing from the cache before they are looked for: its watch may just be a moment behind."""


@dataclass
class _Memory:
    """What is kept between two passes; a restart loses nothing but a few reads."""

    status: Mapping[str, object] | None = None
    status_read: bool = False
    status_at: float = 0.0
    untold_s: float = 0.0
    """Pause before the status is read or written again; 0: nothing is owed."""
    untold_at: float = 0.0
    """When that failed."""
    size_read_at: Mapping[str, float] = field(default_factory=dict)
    """When the size of a ReplicaSet was last read, or tried to be; by UID."""
    missing_since: float | None = None

    def pause_s(self, now: float) -> float:
        """Return the seconds in which the status is neither read nor written; 0: it may be at once."""
        # One from the future is from before the clock was set back.
        return max(self.untold_at + self.untold_s - now, 0.0) if self.untold_at <= now else 0.0


class Reconciler:
    """Bring one workload at a time a step further.

    Args:
        workloads, pods, state: The caches that a snapshot is gathered from.
        cluster: Asked for what no cache has.
        applier: Carries out what was decided.
        metrics: Told what each pass found.
        clock: Unix seconds.
        wake: Asks for another pass in so many seconds at the latest.
        failed: Told what went wrong in a pass that goes on without it.
    """

    def __init__(
        self,
        workloads: Workloads,
        pods: PodInformer,
        state: DrainState,
        cluster: Cluster,
        applier: Applier,
        metrics: Metrics,
        clock: Callable[[], float],
        wake: Callable[[WorkloadKey, float], None] = lambda _key, _after_s: None,
        failed: Callable[[WorkloadKey, Exception], None] = lambda _key, _error: None,
    ) -> None:
        self._workloads = workloads
        self._pods = pods
        self._state = state
        self._cluster = cluster
        self._applier = applier
        self._metrics = metrics
        self._clock = clock
        self._wake = wake
        self._failed = failed
        self._memories: dict[WorkloadKey, _Memory] = {}
        self._gone_since: dict[WorkloadKey, float] = {}

    def begin(self) -> None:
        """Forget what was known of statuses: another replica may have planned meanwhile."""
        self._memories.clear()
        self._gone_since.clear()
        self._metrics.workloads.clear()

    async def reconcile(self, key: WorkloadKey) -> float | None:
        """Look at one workload and do what is to be done; return the seconds after which to look again."""
        workload = self._workloads.get(key)
        if workload is None:
            self._memories.pop(key, None)
            self._metrics.workloads.forget(key)
            return await self._settle(key)
        self._gone_since.pop(key, None)
        memory = self._memories.setdefault(key, _Memory())
        with self._metrics.reconcile_duration.time():
            plan = Plan()
            try:
                snapshot = await self._gather(workload, memory)
                plan = decide(snapshot, self._clock())
                while plan.unsized:
                    snapshot = await self._size(snapshot, plan, memory)
                    plan = decide(snapshot, self._clock())
                await self._applier.apply(snapshot, plan)
            except Exception:
                # The back-off after a failure grows past any deadline.
                self._wake(key, _again_s(plan, memory))
                raise
            await self._tell(snapshot, plan, memory)
        self._metrics.workloads.show(snapshot, plan, memory.status)
        # Where the pause has just ended, this pass may have been too early.
        return min(_again_s(plan, memory), memory.pause_s(self._clock()) if memory.untold_s else LOOK_AGAIN_S)

    def forget_status(self, namespace: str, name: str) -> WorkloadKey | None:
        """Forget the Drain object that somebody deleted, and return its workload: it gets a new one."""
        for key, memory in self._memories.items():
            if key.namespace == namespace and drain_name(key) == name:
                memory.status = None
                return key
        return None

    async def _size(self, snapshot: Snapshot, plan: Plan, memory: _Memory) -> Snapshot:
        """Return the snapshot with the sizes that a plan asks for; where they cannot be read, apply the plan as it is.

        Raises:
            Exception: Whatever kept them from being read.
        """
        now = self._clock()
        before = memory.size_read_at
        memory.size_read_at = {
            view.uid: now if view.uid in plan.unsized else before.get(view.uid, 0.0) for view in snapshot.workload.sets
        }
        try:
            return await self._read_sizes(snapshot, plan.unsized)
        except Exception:
            # What takes no pod does not depend on it.
            await self._applier.apply(snapshot, plan)
            raise

    async def _read_sizes(self, snapshot: Snapshot, uids: frozenset[str]) -> Snapshot:
        """Read ReplicaSets from the API; the pods stay those of the snapshot, which are older.

        Raises:
            Conflict: One of them is gone, or belongs to another workload now.
        """
        workload = snapshot.workload
        asked = [view for view in workload.sets if view.uid in uids]
        documents = await asyncio.gather(
            *(self._cluster.replica_set(workload.key.namespace, view.name) for view in asked)
        )
        for view, document in zip(asked, documents, strict=True):
            self._workloads.take_read(view.uid, document)
        now = self._workloads.get(workload.key)
        known = {} if now is None else {view.uid: view for view in now.sets}
        if now is None or not uids <= known.keys():
            raise Conflict(f"{workload.key}: a ReplicaSet is gone, or has another owner")
        sets = tuple(known.get(view.uid, view) for view in workload.sets)
        return replace(snapshot, workload=replace(now, sets=sets), sized=snapshot.sized | uids)

    async def _settle(self, key: WorkloadKey) -> float | None:
        """Settle what is left of a workload that is gone: a drain ends when its pod goes, as ever.

        The pods go soon after it. Those that stay were left without an owner, and serve again.
        """
        orders = self._orders(key)
        if not orders:
            self._gone_since.pop(key, None)
            return None
        now = self._clock()
        pods = tuple(pod for uid in orders if (pod := self._pods.get(uid)) is not None and not pod.finished)
        if now - self._gone_since.setdefault(key, now) < ORPHANED_FOR_S:
            orders = {uid: orders[uid] for uid in orders.keys() - {pod.uid for pod in pods}}
            pods = ()
        nothing = WorkloadView(
            key, "", generation=0, observed_generation=0, replicas=0, max_surge=0, max_unavailable=0, terminating=True
        )
        snapshot = self._snapshot(nothing, pods, orders, _Memory())
        await self._applier.apply(snapshot, decide(snapshot, now))
        return LOOK_AGAIN_S

    def _orders(self, key: WorkloadKey) -> dict[str, Order]:
        """Return the orders that name a workload, by pod UID."""
        name = f"{key.kind}/{key.name}"
        return {uid: order for uid, order in self._state.orders(key.namespace).items() if order.workload == name}

    async def _gather(self, workload: WorkloadView, memory: _Memory) -> Snapshot:
        now = self._clock()
        if not memory.status_read and not memory.pause_s(now):
            await self._read_status(workload.key, memory)
        pods = {pod.uid: pod for view in workload.sets for pod in self._pods.of(view.uid)}
        for pod in await self._unlabelled(workload, pods, memory, now):
            pods.setdefault(pod.uid, pod)
        named = self._orders(workload.key)
        orders = named | {uid: order for uid in pods if (order := self._state.order(workload.key.namespace, uid))}
        return self._snapshot(workload, tuple(pods.values()), orders, memory)

    def _snapshot(
        self, workload: WorkloadView, pods: tuple[PodView, ...], orders: Mapping[str, Order], memory: _Memory
    ) -> Snapshot:
        namespace = workload.key.namespace
        uids = {pod.uid for pod in pods}
        reports = {uid: report for uid in uids | orders.keys() if (report := self._state.report(namespace, uid))}
        phase, phase_revision, phase_at = self._state.phase(workload.key) or (None, 0, 0.0)
        return Snapshot(
            workload=workload,
            pods=pods,
            orders=orders,
            reports=reports,
            requested=self._state.requested(namespace) & uids,
            phase=phase,
            phase_revision=phase_revision,
            phase_at=phase_at,
            size_read_at=memory.size_read_at,
            status=memory.status,
            status_at=memory.status_at,
            store_ok=self._state.healthy,
            epoch=self._state.epoch,
            recent=self._state.records(workload.key),
        )

    async def _read_status(self, key: WorkloadKey, memory: _Memory) -> None:
        try:
            memory.status = await self._cluster.read_status(key)
        except Exception as error:  # noqa: BLE001 (no pod waits for a status)
            self._owe(key, memory, error)
        else:
            memory.status_read = True

    async def _tell(self, snapshot: Snapshot, plan: Plan, memory: _Memory) -> None:
        """Tell users; what cannot be told is told later, and holds up nothing."""
        if not memory.status_read:
            # It would be written over as if there were none: its transition times, and Warnings that were posted.
            return
        key = snapshot.workload.key
        if memory.pause_s(self._clock()):
            try:
                await self._applier.tell(snapshot, _once_only(plan))
            except Exception as error:  # noqa: BLE001 (nor for an Event)
                self._failed(key, error)
            return
        try:
            await self._applier.tell(snapshot, plan)
        except Exception as error:  # noqa: BLE001 (no pod waits for a status)
            self._owe(key, memory, error)
        else:
            memory.untold_s = 0.0
            self._remember(memory, plan)

    def _owe(self, key: WorkloadKey, memory: _Memory, error: Exception) -> None:
        memory.untold_at = self._clock()
        memory.untold_s = min(max(2 * memory.untold_s, TELL_AGAIN_S), LOOK_AGAIN_S)
        self._failed(key, error)

    async def _unlabelled(
        self, workload: WorkloadView, labelled: Mapping[str, PodView], memory: _Memory, now: float
    ) -> tuple[PodView, ...]:
        """Return pods that should carry the label and do not.

        They were made before the annotation, or while the webhook was away.
        """
        if workload.policy.mode is Mode.OFF:
            memory.missing_since = None
            return ()
        counted = sum(pod.counts for pod in labelled.values())
        if counted >= sum(view.observed_replicas for view in workload.sets):
            memory.missing_since = None
            return ()
        if memory.missing_since is None:
            memory.missing_since = now
        if now - memory.missing_since < MISSING_FOR_S:
            return ()
        memory.missing_since = now
        return tuple(await self._cluster.unlabelled_pods(workload))

    def _remember(self, memory: _Memory, plan: Plan) -> None:
        for action in plan.actions:
            if isinstance(action, WriteStatus):
                memory.status, memory.status_at = action.status, self._clock()
            elif isinstance(action, RemoveStatus):
                memory.status = None


def _again_s(plan: Plan, memory: _Memory) -> float:
    """Return the seconds after which to look again, whatever else there is to do."""
    pause_s = LOOK_AGAIN_S if memory.missing_since is None else MISSING_FOR_S
    return min(pause_s, plan.requeue_after_s or LOOK_AGAIN_S)


def _once_only(plan: Plan) -> Plan:
    """Leave out whatever is planned again until the status is written: itself, and Warnings of annotations."""
    events = (one for one in plan.actions if isinstance(one, Notify) and one.reason != reasons.INVALID_ANNOTATION)
    return replace(plan, actions=tuple(events))
