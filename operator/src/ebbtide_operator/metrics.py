"""Every metric of the operator, declared once.

Labels are bounded: namespace, workload, kind and small enums, never a pod. Per-pod series come from the pods themselves
and end with them. Counters are raised after the write that they count succeeded.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ebbtide.protocol import TASK_OUTCOMES, RolloutPhase
from ebbtide_operator.core.model import Mode, Plan, Snapshot, WorkloadKey
from ebbtide_operator.ports import StoreStatus

WORKLOAD = ("namespace", "kind", "workload")
DRAIN_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
ANSWER_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
DELETE_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PODS = ("serving", "draining", "drained", "unknown")
OTHER = "other"
"""Outcomes of tasks that the protocol does not name, all of them together."""


Samples = Mapping[str, Sequence[tuple[tuple[str, ...], float]]]
"""Of one workload: by metric, values with the labels that come after those of the workload."""


class WorkloadGauges(Collector):
    """What the last pass over each workload found; only the replica that plans shows any.

    One collector for all, because a workload comes, changes and goes as a whole: each `Gauge` would have to be searched
    for its series.
    """

    GAUGES: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]] = {
        "ebbtide_workload_info": ("Workloads that opted in; always 1.", ("mode",)),
        "ebbtide_rollout_phase": ("1 for the phase that a workload is in.", ("phase",)),
        "ebbtide_pods": ("Managed pods by state.", ("state",)),
        "ebbtide_surplus_pods": ("Pods that their controllers want to delete.", ()),
        "ebbtide_tasks_left": ("Tasks in flight in draining pods.", ()),
        "ebbtide_oldest_drain_start_timestamp_seconds": ("Start of the oldest drain under way; 0 without one.", ()),
        "ebbtide_invalid_annotations": (
            "1 for each annotation that cannot be used; its workload runs as without Ebbtide.",
            ("annotation",),
        ),
    }

    def __init__(self) -> None:
        self._samples: dict[WorkloadKey, Samples] = {}

    def show(self, snapshot: Snapshot, plan: Plan, status: Mapping[str, object] | None) -> None:
        """Take what one pass found; `status` is that of the workload's Drain object."""
        workload = snapshot.workload
        invalid = [((problem.annotation,), 1.0) for problem in workload.problems]
        if workload.policy.mode is Mode.OFF:
            self._samples[workload.key] = {"ebbtide_invalid_annotations": invalid}
            return
        starts = [pod.draining_since for pod in snapshot.pods if pod.draining_since and pod.counts]
        pods = {} if status is None else status.get("pods")
        counts = pods if isinstance(pods, Mapping) else {}
        phase = None if status is None else status.get("phase")
        self._samples[workload.key] = {
            "ebbtide_invalid_annotations": invalid,
            "ebbtide_workload_info": [((workload.policy.mode.value,), 1.0)],
            "ebbtide_rollout_phase": [((one.value,), float(one == phase)) for one in RolloutPhase],
            "ebbtide_pods": [((state,), float(counts.get(state, 0))) for state in PODS],
            "ebbtide_surplus_pods": [((), float(plan.surplus))],
            "ebbtide_tasks_left": [((), float(plan.tasks_left))],
            "ebbtide_oldest_drain_start_timestamp_seconds": [((), min(starts, default=0.0))],
        }

    def forget(self, key: WorkloadKey) -> None:
        """Show nothing of a workload any more; its counters stay, as Prometheus expects of counters."""
        self._samples.pop(key, None)

    def clear(self) -> None:
        """Show nothing: another replica plans."""
        self._samples.clear()

    def collect(self) -> Iterator[Metric]:
        for name, (explanation, extra) in self.GAUGES.items():
            family = GaugeMetricFamily(name, explanation, labels=(*WORKLOAD, *extra))
            for key, samples in self._samples.items():
                for labels, value in samples.get(name, ()):
                    family.add_metric((key.namespace, key.kind, key.name, *labels), value)
            yield family


class Metrics:
    """The operator's metrics in a registry of their own, so that tests can make as many as they like."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.workloads = WorkloadGauges()
        self.registry.register(self.workloads)
        self._drains()
        self._admission()
        self._health()

    def count_tasks(self, key: WorkloadKey, tally: Mapping[str, int]) -> None:
        """Count the tasks of a pod's tally by outcome.

        The tally is the pod's own word. Its keys must not become label values as they are, or a pod could make series
        without end; and a counter takes nothing below zero.
        """
        for outcome, count in tally.items():
            if count > 0:
                label = outcome if outcome in TASK_OUTCOMES else OTHER
                self.tasks.labels(key.namespace, key.kind, key.name, label).inc(count)

    def show_store(self, status: StoreStatus, fault: str) -> None:
        """Show what etcd says of itself; what it does not say is not shown.

        Args:
            status: Its answer.
            fault: What is wrong with its version; empty: nothing that is known.
        """
        parts = {"file": status.file, "in_use": status.in_use, "quota": status.quota}
        for part, size in parts.items():
            if size is not None:
                self.store_database.labels(part).set(size)
        # The member that answered last: one series, whatever the versions over time.
        self.store_version.clear()
        if status.version:
            self.store_version.labels(status.version, "bad" if fault else "fine").set(1)

    def _drains(self) -> None:
        registry = self.registry
        self.orders = Counter("ebbtide_orders_total", "Orders sent to pods.", (*WORKLOAD, "desired"), registry=registry)
        self.drains = Counter(
            "ebbtide_drains_total", "Drains that ended, by outcome.", (*WORKLOAD, "outcome"), registry=registry
        )
        self.drain_duration = Histogram(
            "ebbtide_drain_duration_seconds",
            "Time from the drain order to its end.",
            WORKLOAD,
            buckets=DRAIN_BUCKETS,
            registry=registry,
        )
        self.released_to_deleted = Histogram(
            "ebbtide_released_to_deleted_seconds",
            "Time from the decision to release a pod to its accepted deletion.",
            buckets=DELETE_BUCKETS,
            registry=registry,
        )
        self.tasks = Counter(
            "ebbtide_drained_tasks_total",
            "Tasks of drained pods by outcome, from the pods' final tallies.",
            (*WORKLOAD, "outcome"),
            registry=registry,
        )

    def _admission(self) -> None:
        registry = self.registry
        self.admission_requests = Counter(
            "ebbtide_admission_requests_total",
            "Admission requests answered.",
            ("webhook", "verdict", "cause"),
            registry=registry,
        )
        self.admission_duration = Histogram(
            "ebbtide_admission_duration_seconds",
            "Time to answer an admission request.",
            ("webhook",),
            buckets=ANSWER_BUCKETS,
            registry=registry,
        )
        self.floor_patches = Counter(
            "ebbtide_floor_patches_total", "New pods by what the floor did.", ("result",), registry=registry
        )
        self.fail_open = Counter(
            "ebbtide_fail_open_total",
            "Deletes let through before the pod was drained, because a part of Ebbtide was away.",
            ("cause",),
            registry=registry,
        )

    def _health(self) -> None:
        registry = self.registry
        self.reconcile_duration = Histogram(
            "ebbtide_reconcile_duration_seconds",
            "Time to gather, decide and apply for one workload.",
            buckets=ANSWER_BUCKETS,
            registry=registry,
        )
        self.reconcile_errors = Counter(
            "ebbtide_reconcile_errors_total", "Reconciliations to be tried again.", ("reason",), registry=registry
        )
        self.queue_depth = Gauge("ebbtide_queue_depth", "Workloads waiting to be reconciled.", registry=registry)
        self.api_writes = Counter(
            "ebbtide_api_writes_total", "Writes to the Kubernetes API.", ("verb", "resource"), registry=registry
        )
        self.store_writes = Counter("ebbtide_store_writes_total", "Writes to etcd.", ("record",), registry=registry)
        self.store_healthy = Gauge(
            "ebbtide_store_healthy", "1 while etcd answers, is not full, and its watch is connected.", registry=registry
        )
        self.store_database = Gauge(
            "ebbtide_store_database_bytes",
            "Size of etcd's database: its file, what is in use of it, and the quota at which etcd refuses writes.",
            ("part",),
            registry=registry,
        )
        self.store_version = Gauge(
            "ebbtide_store_version_info",
            "Always 1; the version of etcd, and whether it is known to be bad.",
            ("version", "judgement"),
            registry=registry,
        )
        self.leader = Gauge("ebbtide_leader", "1 in the replica that plans.", registry=registry)
        self.epoch = Gauge("ebbtide_epoch", "Epoch of this replica's leadership; 0 without.", registry=registry)
        self.watch_last_event = Gauge(
            "ebbtide_watch_last_event_timestamp_seconds",
            "When a watch last heard from the API server, bookmarks included.",
            ("resource",),
            registry=registry,
        )
        self.certificate_expiration = Gauge(
            "ebbtide_certificate_expiration_timestamp_seconds",
            "When a certificate expires.",
            ("certificate",),
            registry=registry,
        )
        self.relay_connections = Gauge("ebbtide_relay_connections", "Watches that pods hold open.", registry=registry)
        self.relay_cuts = Counter(
            "ebbtide_relay_watches_cut_total",
            "Watches that were cut off for what the pod sent up, by the HTTP status that says what it was.",
            ("status",),
            registry=registry,
        )
        build = Gauge("ebbtide_build_info", "Always 1.", ("version", "python"), registry=registry)
        try:
            own = version("ebbtide")
        except PackageNotFoundError:
            own = "unknown"
        build.labels(own, platform.python_version()).set(1)
