"""Builders with defaults: a test names only what it is about."""

from typing import Any

from ebbtide.protocol import Desired, Order, Phase, PodState, Report, RolloutPhase
from ebbtide_operator.core.model import (
    Mode,
    PodView,
    Policy,
    ReplicaSetView,
    ReportView,
    Snapshot,
    WorkloadKey,
    WorkloadView,
)

NOW = 1_800_000_000.0
KEY = WorkloadKey("shop", "deployment", "orders")


def a_policy(**changes: Any) -> Policy:
    given: dict[str, Any] = {"mode": Mode.MANAGED, "quiesce_s": 5.0, "drain_timeout_s": 60.0, "cancel_grace_s": 10.0}
    return Policy(**given | changes)


def a_set(uid: str = "rs", replicas: int = 3, **changes: Any) -> ReplicaSetView:
    fields: dict[str, Any] = {
        "name": f"orders-{uid}",
        "uid": uid,
        "replicas": replicas,
        "observed_replicas": replicas,
        "revision": "1",
    }
    return ReplicaSetView(**fields | changes)


def a_workload(*, replicas: int = 3, sets: tuple[ReplicaSetView, ...] | None = None, **changes: Any) -> WorkloadView:
    fields: dict[str, Any] = {
        "key": KEY,
        "uid": "workload-uid",
        "generation": 1,
        "observed_generation": 1,
        "replicas": replicas,
        "max_surge": 1,
        "max_unavailable": 1,
        "revision": "1",
        "sets": (a_set(replicas=replicas),) if sets is None else sets,
        "policy": a_policy(),
    }
    return WorkloadView(**fields | changes)


def a_pod(name: str, **changes: Any) -> PodView:
    fields: dict[str, Any] = {
        "namespace": "shop",
        "name": name,
        "uid": f"{name}-uid",
        "owner_uid": "rs",
        "created_at": NOW - 3600,
        "ready": True,
        "label": "true",
    }
    return PodView(**fields | changes)


def a_report(*, live: bool = True, received_at: float = NOW, **changes: Any) -> ReportView:
    fields: dict[str, Any] = {"state": PodState.SERVING, "sequence": 1, "boot_id": "boot", "phase_revision": 1}
    return ReportView(Report(**fields | changes), live=live, received_at=received_at)


def an_order(desired: Desired = Desired.DRAIN, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "desired": desired,
        "generation": 1,
        "epoch": 7,
        "quiesce_s": 5.0,
        "drain_timeout_s": 60.0,
        "cancel_grace_s": 10.0,
        "issued_at": NOW - 1,
        "pod": "a",
        "workload": "deployment/orders",
    }
    return Order(**fields | changes)


def a_snapshot(workload: WorkloadView, pods: tuple[PodView, ...], **changes: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "phase": Phase(phase=RolloutPhase.SCALING_DOWN, revision="1"),
        "phase_revision": 1,
        "phase_at": NOW - 5,
        "epoch": 7,
        "sized": frozenset(pod.owner_uid for pod in pods),
    }
    return Snapshot(workload=workload, pods=pods, **fields | changes)
