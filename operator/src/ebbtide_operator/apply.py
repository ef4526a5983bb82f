"""The effects of a plan: the only place that orders writes.

The phase comes first, since it asks the pods for the numbers of the next decision. Only pods that are released do not
wait for it, which need no number any more, and nobody waits for them. Then each pod has its own chain, in the order of
the plan (an order before its pin, a record before what it was made of is forgotten); chains of different pods run side
by side. Status and Events come last: they tell what was done, and no pod waits for them. Every effect can be repeated;
what failed is planned again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from ebbtide.protocol import DrainRecord, Outcome
from ebbtide_operator.core import marks, names
from ebbtide_operator.core.model import (
    Action,
    Adopt,
    Forget,
    Notify,
    Pin,
    Plan,
    PodView,
    PublishPhase,
    Release,
    RemoveStatus,
    Return,
    SendOrder,
    Snapshot,
    WorkloadView,
    WriteRecord,
    WriteStatus,
)
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import Cluster, Conflict, Deposed, DrainState, Refused, StoreUnavailable

logger = logging.getLogger(__name__)

CONCURRENT_PODS = 16
GRAVITY = (Deposed, StoreUnavailable, Exception, Conflict)
"""Which failure of several is the one to tell: the one that explains the others."""


class Applier:
    """Carry out plans.

    Args:
        cluster: Kubernetes.
        state: The store's records.
        metrics: Raised after the write that they count succeeded.
        clock: Unix seconds.
        may_delete: Asked right before each deletion of a released pod; where it says no, the pod is marked as released,
            and its controller deletes it once it asks again.
    """

    def __init__(
        self,
        cluster: Cluster,
        state: DrainState,
        metrics: Metrics,
        clock: Callable[[], float],
        may_delete: Callable[[], bool],
    ) -> None:
        self._cluster = cluster
        self._state = state
        self._metrics = metrics
        self._clock = clock
        self._may_delete = may_delete
        self._released_at: dict[str, float] = {}
        self._slots = asyncio.Semaphore(CONCURRENT_PODS)

    async def apply(self, snapshot: Snapshot, plan: Plan) -> None:
        """Do what a plan wants done to pods; a failure on one of them does not keep the others from theirs.

        Raises:
            Deposed: Another operator leads.
            StoreUnavailable: The store did not answer.
            Conflict: A pod is another one or gone; the rest was done.
        """
        workload = snapshot.workload
        decided_at = self._clock()
        releases, others = _chains(plan)
        for action in plan.actions:
            if isinstance(action, Release):
                # The first decision counts: one that is planned again was not carried out in time.
                self._released_at.setdefault(action.pod.uid, decided_at)
        failures = await asyncio.gather(
            *(self._chain(workload, chain) for chain in releases),
            self._publish_and_go_on(workload, plan, others),
            return_exceptions=True,
        )
        _raise_gravest(failures)

    async def tell(self, snapshot: Snapshot, plan: Plan) -> None:
        """Tell users what was done by a plan that was applied: status and Events.

        Raises:
            Exception: Whatever kept one of them from being written, after the others were tried.
        """
        # Side by side: no plan is made of this workload meanwhile, and a pod may have drained.
        telling = [action for action in plan.actions if isinstance(action, WriteStatus | RemoveStatus | Notify)]
        _raise_gravest(
            await asyncio.gather(*(self._tell(snapshot, action) for action in telling), return_exceptions=True)
        )

    def note_terminating(self, uid: str) -> None:
        """Measure the time from the decision to release a pod to its deletion; called once that is known."""
        released_at = self._released_at.pop(uid, None)
        if released_at is not None:
            self._metrics.released_to_deleted.observe(self._clock() - released_at)

    async def _publish_and_go_on(self, workload: WorkloadView, plan: Plan, chains: Sequence[Sequence[Action]]) -> None:
        await self._publish(workload, plan)
        failures = await asyncio.gather(*(self._chain(workload, chain) for chain in chains), return_exceptions=True)
        _raise_gravest(failures)

    async def _publish(self, workload: WorkloadView, plan: Plan) -> None:
        for action in plan.actions:
            if isinstance(action, PublishPhase):
                await self._state.publish_phase(workload.key, action.phase)
                self._metrics.store_writes.labels("phase").inc()

    async def _chain(self, workload: WorkloadView, actions: Sequence[Action]) -> None:
        async with self._slots:
            match actions:
                case [*first, WriteRecord(record), Forget(_, uid)]:
                    for action in first:
                        await self._on_pod(workload, action)
                    await self._state.end(workload.key, record)
                    self._count_end(workload, record)
                    self._released_at.pop(uid, None)
                case _:
                    for action in actions:
                        await self._on_pod(workload, action)

    async def _on_pod(self, workload: WorkloadView, action: Action) -> None:
        labels = (workload.key.namespace, workload.key.kind, workload.key.name)
        match action:
            case Adopt(pod, label):
                await self._cluster.patch_pod(pod, labels={names.MANAGED: label or None})
            case SendOrder(pod, order):
                await self._state.send_order(pod.namespace, pod.uid, order)
                self._metrics.store_writes.labels("order").inc()
                self._metrics.orders.labels(*labels, order.desired).inc()
                logger.info(
                    "order.sent",
                    extra={
                        "workload": str(workload.key),
                        "pod": pod.name,
                        "desired": order.desired.value,
                        "generation": order.generation,
                        "reason": order.reason,
                    },
                )
            case Pin(pod, since, deadline_at):
                await self._cluster.patch_pod(pod, annotations=marks.pin_marks(pod, since, deadline_at))
            case Release():
                await self._release(workload, action)
            case Return(pod):
                await self._cluster.patch_pod(pod, annotations=marks.return_marks(pod))
                self._released_at.pop(pod.uid, None)
            case WriteRecord(record):
                await self._state.write_record(workload.key, record)
                self._count_end(workload, record)
            case Forget(namespace, uid):
                await self._state.forget(namespace, uid)
                self._metrics.store_writes.labels("forget").inc()
                self._released_at.pop(uid, None)
            case PublishPhase() | WriteStatus() | RemoveStatus() | Notify():
                raise AssertionError(f"not about one pod: {action}")

    async def _release(self, workload: WorkloadView, action: Release) -> None:
        pod = action.pod
        # Taken here: the answer to the delete ends the measurement, which forgets it.
        decided_at = self._released_at.get(pod.uid, self._clock())
        deleted = await self._delete(workload, pod)
        if not deleted:
            # Whoever asks next may do it: its controller, as soon as it tries again.
            await self._cluster.patch_pod(pod, annotations=marks.release_marks(pod, action.outcome))
        logger.info(
            "pod.released",
            extra={
                "workload": str(workload.key),
                "pod": pod.name,
                "outcome": action.outcome.value,
                "explanation": action.message,
                "decided_at": marks.format_time(decided_at),
                "deleted": deleted,
            },
        )

    async def _delete(self, workload: WorkloadView, pod: PodView) -> bool:
        """Delete a pod that may go; False: that is left to its controller."""
        # Deletes are not fenced by the epoch: one that was stopped meanwhile must not go on with an old plan.
        if not self._may_delete():
            return False
        try:
            await self._cluster.delete_pod(pod)
        except Refused as error:
            logger.warning(
                "pod.delete_refused", extra={"workload": str(workload.key), "pod": pod.name, "error": str(error)}
            )
            return False
        return True

    def _count_end(self, workload: WorkloadView, record: DrainRecord) -> None:
        labels = (workload.key.namespace, workload.key.kind, workload.key.name)
        self._metrics.store_writes.labels("record").inc()
        self._metrics.drains.labels(*labels, record.outcome).inc()
        seconds = max(0.0, record.ended_at - record.started_at)
        self._metrics.drain_duration.labels(*labels).observe(seconds)
        logger.info(
            "drain.ended",
            extra={
                "workload": str(workload.key),
                "pod": record.pod,
                "outcome": record.outcome.value,
                "seconds": round(seconds, 1),
                "tasks_left": record.active_at_end,
                "tally": dict(record.tally),
            },
        )
        if record.outcome is not Outcome.RETURNED:
            # The tally runs from the start of the process: a pod that serves again will tell it again.
            self._metrics.count_tasks(workload.key, record.tally)

    async def _tell(self, snapshot: Snapshot, action: Action) -> None:
        workload = snapshot.workload
        match action:
            case WriteStatus(status):
                await self._cluster.write_status(workload, _with_removals(snapshot.status or {}, status))
            case RemoveStatus():
                await self._cluster.remove_status(workload.key)
                await self._state.remove_phase(workload.key)
            case Notify(reason, message, warning):
                await self._cluster.post_event(workload, reason, message, warning=warning)
            case _:
                raise AssertionError(f"about a pod: {action}")


def _with_removals(old: Mapping[str, object], new: Mapping[str, object]) -> Mapping[str, object]:
    """Return a merge patch from one status to the next: keys that are gone become None."""
    return {**dict.fromkeys(old.keys() - new.keys()), **new}


def _chains(plan: Plan) -> tuple[list[list[Action]], list[list[Action]]]:
    """Return what is to be done to each pod, in order: first of the pods that are released, then of all others."""
    chains: dict[str, list[Action]] = defaultdict(list)
    for action in plan.actions:
        match action:
            case Adopt(pod) | SendOrder(pod) | Pin(pod) | Release(pod) | Return(pod):
                chains[pod.uid].append(action)
            case WriteRecord(record):
                chains[record.uid].append(action)
            case Forget(_, uid):
                chains[uid].append(action)
            case PublishPhase() | WriteStatus() | RemoveStatus() | Notify():
                pass
    released = {action.pod.uid for action in plan.actions if isinstance(action, Release)}
    return (
        [chain for uid, chain in chains.items() if uid in released],
        [chain for uid, chain in chains.items() if uid not in released],
    )


def _raise_gravest(outcomes: Sequence[BaseException | None]) -> None:
    failures = [outcome for outcome in outcomes if outcome is not None]
    for failure in failures:
        if not isinstance(failure, Exception):
            raise failure
    for kind in GRAVITY:
        for failure in failures:
            if isinstance(failure, kind) and not (kind is Exception and isinstance(failure, Conflict)):
                raise failure
