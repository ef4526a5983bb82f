"""A model of everything around the planner: ReplicaSet controllers, pods with the library, the store, and the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ebbtide.protocol import Desired, DrainRecord, Order, Phase, PodState, Report
from ebbtide_operator.core import marks, names
from ebbtide_operator.core.decide import decide
from ebbtide_operator.core.model import (
    Action,
    Adopt,
    Forget,
    Mode,
    Notify,
    Pin,
    Plan,
    PodView,
    Policy,
    PublishPhase,
    Release,
    RemoveStatus,
    ReplicaSetView,
    ReportView,
    Return,
    SendOrder,
    Snapshot,
    WorkloadKey,
    WorkloadView,
    WriteRecord,
    WriteStatus,
)

KEY = WorkloadKey("shop", "deployment", "orders")
POLICY = Policy(mode=Mode.MANAGED, drain_timeout_s=60, cancel_grace_s=10, quiesce_s=5, max_draining=2)


def a_workload(sets: tuple[ReplicaSetView, ...] = (), **fields: Any) -> WorkloadView:
    given: dict[str, Any] = {
        "generation": 1,
        "observed_generation": 1,
        "replicas": sum(one.replicas for one in sets),
        "max_surge": 1,
        "max_unavailable": 1,
        "revision": "1",
        "policy": POLICY,
    }
    return WorkloadView(key=KEY, uid="w", sets=sets, **(given | fields))


def a_set(name: str = "old", replicas: int = 3, revision: str = "1", observed: int | None = None) -> ReplicaSetView:
    return ReplicaSetView(name, f"rs-{name}", replicas, replicas if observed is None else observed, revision)


@dataclass
class Process:
    """The library in one pod, with the tasks that it runs."""

    state: PodState = PodState.SERVING
    tasks: int = 0
    stubborn: bool = False
    silent: bool = False
    generation: int = 0
    forced: bool = False
    abandoned: int = 0
    order: Order | None = None
    ordered_at: float = 0.0
    sequence: int = 0


@dataclass
class World:
    policy: Policy = POLICY
    now: float = 1000.0
    sets: dict[str, ReplicaSetView] = field(default_factory=dict)
    seen: dict[str, ReplicaSetView] = field(default_factory=dict)
    """The ReplicaSets as the operator's watch has told them, which may be late; pods are always seen as they are."""
    pods: dict[str, PodView] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    reports: dict[str, ReportView] = field(default_factory=dict)
    records: list[DrainRecord] = field(default_factory=list)
    phase: Phase | None = None
    phase_revision: int = 0
    phase_at: float = 0.0
    status: Mapping[str, object] | None = None
    status_at: float = 0.0
    store_ok: bool = True
    webhook_up: bool = True
    may_delete: bool = False
    """Whether the operator deletes what it releases, or leaves that to the controllers."""
    made: int = 0
    user_costs: dict[str, int | None] = field(default_factory=dict)
    first_ordered_at: dict[str, float] = field(default_factory=dict)
    requested: set[str] = field(default_factory=set)

    def add_set(self, name: str, replicas: int, revision: str) -> None:
        self.sets[f"rs-{name}"] = self.seen[f"rs-{name}"] = a_set(name, replicas, revision)
        self.control()

    def resize(self, uid: str, replicas: int, *, unseen: bool = False) -> None:
        self.sets[uid] = replace(self.sets[uid], replicas=replicas)
        if not unseen:
            self.see(uid)

    def see(self, *uids: str) -> None:
        """Let the operator learn the sizes of ReplicaSets; without names, of all."""
        self.seen |= {uid: self.sets[uid] for uid in uids or self.sets}

    def snapshot(self, sized: frozenset[str] = frozenset()) -> Snapshot:
        sets = tuple(replace(one, observed_replicas=len(self.active(one.uid))) for one in self.seen.values())
        # The pod watch selects by the label; pods without it are looked for only where some should have it.
        newest = max((one.revision for one in sets), default="")
        return Snapshot(
            workload=a_workload(sets, revision=newest, policy=self.policy),
            pods=tuple(pod for pod in self.pods.values() if pod.label or self.policy.mode is not Mode.OFF),
            orders=dict(self.orders),
            reports=dict(self.reports),
            sized=sized,
            requested=frozenset(self.requested),
            phase=self.phase,
            phase_revision=self.phase_revision,
            phase_at=self.phase_at,
            status=self.status,
            status_at=self.status_at,
            store_ok=self.store_ok,
            epoch=7,
            recent=tuple(reversed(self.records[-10:])),
        )

    def truth(self) -> Snapshot:
        """Return a snapshot with the ReplicaSets as they are."""
        now = self.snapshot()
        return replace(now, workload=replace(now.workload, sets=tuple(self.sets.values())))

    def plan(self) -> Plan:
        """Plan as the operator does: sizes are read where pods would be taken."""
        sized: frozenset[str] = frozenset()
        while (plan := decide(self.snapshot(sized), self.now)).unsized:
            self.see(*plan.unsized)
            sized |= plan.unsized
        return plan

    def apply(self, plan: Plan, most: int | None = None) -> None:
        """Carry out a plan, or its first actions only: then the operator was killed."""
        for action in plan.actions[:most]:
            self._apply(action)

    def _apply(self, action: Action) -> None:
        match action:
            case SendOrder(pod, order):
                assert self.store_ok, "nothing is written to a store that is away"
                self.orders[pod.uid] = order
                if order.desired is Desired.DRAIN:
                    self.first_ordered_at.setdefault(pod.uid, self.now)
                else:
                    self.first_ordered_at.pop(pod.uid, None)
            case Pin(pod, since, deadline_at):
                self._mark(pod, marks.pin_marks(self.pods.get(pod.uid, pod), since, deadline_at))
            case Release(pod) if self.may_delete:
                if pod.uid in self.pods:
                    self.remove(pod.uid)
            case Release(pod, outcome, _):
                self._mark(pod, marks.release_marks(self.pods.get(pod.uid, pod), outcome))
            case Return(pod):
                self._mark(pod, marks.return_marks(self.pods.get(pod.uid, pod)))
            case Adopt(pod, label):
                if pod.uid in self.pods:
                    self.pods[pod.uid] = replace(self.pods[pod.uid], label=label)
            case PublishPhase(phase):
                self.phase, self.phase_at = phase, self.now
                self.phase_revision += 1
            case WriteRecord(record):
                self.records.append(record)
            case Forget(_, uid):
                self.orders.pop(uid, None)
                self.reports.pop(uid, None)
            case WriteStatus(status):
                self.status, self.status_at = status, self.now
            case RemoveStatus():
                self.status = self.phase = None
            case Notify():
                pass

    def _mark(self, pod: PodView, changes: Mapping[str, str | None]) -> None:
        if pod.uid not in self.pods:
            return
        old = self.pods[pod.uid]
        values: dict[str, str | None] = {
            names.DRAINING_SINCE: None if old.draining_since is None else marks.format_time(old.draining_since),
            names.DRAIN_DEADLINE: None if old.deadline_at is None else marks.format_time(old.deadline_at),
            names.RELEASED: old.released,
            names.DELETION_COST: None if old.deletion_cost is None else str(old.deletion_cost),
            names.ORIGINAL_COST: old.original_cost,
        } | dict(changes)
        read = marks.read_marks({name: value for name, value in values.items() if value is not None})
        self.pods[pod.uid] = replace(
            old,
            draining_since=read.draining_since,
            deadline_at=read.deadline_at,
            released=read.released,
            deletion_cost=read.deletion_cost,
            original_cost=read.original_cost,
        )

    def active(self, owner: str) -> list[PodView]:
        return [pod for pod in self.pods.values() if pod.owner_uid == owner and not pod.terminating]

    def control(self) -> None:
        """Let the ReplicaSet controllers work: they make what is missing, and delete what they are let."""
        for one in self.sets.values():
            pods = self.active(one.uid)
            for _ in range(one.replicas - len(pods)):
                self.made += 1
                uid = f"p{self.made}"
                # Made without the floor, a pod is adopted later, and not heard.
                floor, label = self.webhook_up, "true" if self.webhook_up else ""
                pod = PodView("shop", uid, uid, one.uid, self.now, started=False, label=label, floored=floor)
                self.pods[uid] = pod
                self.processes[uid] = Process(silent=not self.webhook_up)
                self.user_costs[uid] = None
            # The controller's own order: readiness, then deletion cost.
            pods.sort(key=lambda pod: (pod.ready, pod.deletion_cost or 0, -pod.created_at, pod.name))
            for pod in pods[: max(0, len(pods) - one.replicas)]:
                if pod.released is not None or pod.label != "true" or self.policy.mode is not Mode.MANAGED:
                    self.remove(pod.uid)
                else:
                    self.requested.add(pod.uid)

    def lose_store(self) -> None:
        """Make the store anew, empty. Its pods notice: they forget generations, as the library does, and go on."""
        self.orders.clear()
        self.reports.clear()
        self.requested.clear()
        self.phase, self.phase_revision = None, 0
        for process in self.processes.values():
            process.generation = 0

    def remove(self, uid: str) -> None:
        """End a pod at once; its last report stays behind, without its lease."""
        del self.pods[uid]
        self.processes.pop(uid)
        self.requested.discard(uid)
        if uid in self.reports:
            self.reports[uid] = replace(self.reports[uid], live=False)

    def live(self) -> None:
        """Let every pod obey its order and report."""
        for uid, process in self.processes.items():
            order = self.orders.get(uid) if self.store_ok else None
            if order is not None and order.generation > process.generation and not process.silent:
                self._obey(uid, process, order)
            self._go_on(uid, process)
            if self.store_ok and not process.silent:
                process.sequence += 1
                report = Report(
                    state=process.state,
                    sequence=process.sequence,
                    boot_id="b",
                    generation=process.generation,
                    active=process.tasks,
                    forced=process.forced,
                    tally={"abandoned": process.abandoned} if process.abandoned else {},
                    phase_revision=self.phase_revision,
                )
                self.reports[uid] = ReportView(report, live=True, received_at=self.now)
            self.pods[uid] = replace(self.pods[uid], started=True, ready=process.state is PodState.SERVING)

    def _obey(self, uid: str, process: Process, order: Order) -> None:
        if order.desired is Desired.SERVE:
            if process.forced:
                self.processes[uid] = process = Process(stubborn=process.stubborn)
            process.state = PodState.SERVING
            process.order = None
        elif process.order is None:
            process.state, process.order, process.ordered_at = PodState.QUIESCING, order, self.now
        process.generation = order.generation

    def _go_on(self, uid: str, process: Process) -> None:
        order = process.order
        if order is None:
            return
        age_s = self.now - process.ordered_at
        if process.state is PodState.QUIESCING and age_s >= order.quiesce_s:
            process.state = PodState.DRAINING
        if process.state is PodState.DRAINING and process.tasks and age_s >= order.quiesce_s + order.drain_timeout_s:
            process.state, process.forced = PodState.CANCELLING, True
            if not process.stubborn:
                process.tasks = 0
        if process.state in {PodState.DRAINING, PodState.CANCELLING}:
            budget_s = order.quiesce_s + order.drain_timeout_s + order.cancel_grace_s
            if process.tasks == 0:
                process.state = PodState.DRAINED
            elif age_s >= budget_s:
                process.state, process.abandoned = PodState.DRAINED, process.tasks

    def settle(self, steps: int = 200) -> None:
        """Let time pass until nothing is left to be done."""
        for _ in range(steps):
            self.live()
            plan = self.plan()
            self.apply(plan)
            before = dict(self.pods)
            self.control()
            if not plan.actions and plan.requeue_after_s is None and self.pods == before:
                return
            self.now += min(plan.requeue_after_s or 0.01, 5.0) + 0.001
        raise AssertionError(f"still not settled: {self.plan()}")
