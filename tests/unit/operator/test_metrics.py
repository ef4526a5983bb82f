from dataclasses import replace
from typing import Any

from prometheus_client import generate_latest

from ebbtide.protocol import TASK_OUTCOMES
from ebbtide_operator.core.model import Mode, Plan, PodView, Policy, Problem, Snapshot, WorkloadKey, WorkloadView
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import StoreStatus

PARTS = ("file", "in_use", "quota")
KEY = WorkloadKey("shop", "deployment", "orders")


def a_snapshot(name: str = "orders", mode: Mode = Mode.MANAGED, **fields: Any) -> Snapshot:
    key = replace(KEY, name=name)
    workload = WorkloadView(key, "w", 1, 1, 3, 1, 0, policy=Policy(mode), **fields)
    pod = PodView("shop", "a", "uid-a", "rs", 1.0, draining_since=77.0)
    return Snapshot(workload, (pod,))


STATUS = {"phase": "RollingOut", "pods": {"total": 3, "serving": 2, "draining": 1}}


def test_a_workloads_gauges_show_its_last_pass_and_go_with_it() -> None:
    metrics = Metrics()
    metrics.workloads.show(a_snapshot(), Plan(surplus=2, tasks_left=5), STATUS)
    metrics.workloads.show(a_snapshot(), Plan(surplus=1, tasks_left=4), STATUS)
    labels = {"namespace": "shop", "kind": "deployment", "workload": "orders"}

    def sample(name: str, **extra: str) -> float | None:
        return metrics.registry.get_sample_value(name, {**labels, **extra})

    assert sample("ebbtide_surplus_pods") == 1
    assert sample("ebbtide_tasks_left") == 4
    assert sample("ebbtide_pods", state="serving") == 2
    assert sample("ebbtide_rollout_phase", phase="RollingOut") == 1
    assert sample("ebbtide_rollout_phase", phase="Stable") == 0
    assert sample("ebbtide_oldest_drain_start_timestamp_seconds") == 77
    metrics.workloads.forget(a_snapshot().workload.key)
    assert sample("ebbtide_surplus_pods") is None


def test_a_workload_that_is_off_shows_what_is_wrong_with_it_alone() -> None:
    metrics = Metrics()
    problem = Problem("ebbtide.dev/drain-timeout", "must be a duration")
    metrics.workloads.show(a_snapshot(mode=Mode.OFF, problems=(problem,)), Plan(), None)
    page = generate_latest(metrics.registry).decode()
    assert 'ebbtide_invalid_annotations{annotation="ebbtide.dev/drain-timeout"' in page
    assert "ebbtide_workload_info{" not in page


def test_a_replica_that_stops_planning_shows_no_workload() -> None:
    metrics = Metrics()
    metrics.workloads.show(a_snapshot("a"), Plan(), STATUS)
    metrics.workloads.show(a_snapshot("b"), Plan(), STATUS)
    metrics.workloads.clear()
    assert 'namespace="shop"' not in generate_latest(metrics.registry).decode()


def test_no_metric_can_have_a_label_that_grows_with_pods() -> None:
    metrics = Metrics()
    metrics.workloads.show(a_snapshot(), Plan(), STATUS)
    page = generate_latest(metrics.registry).decode()
    assert "uid" not in page
    assert 'pod="' not in page
    names = [line.split()[2] for line in page.splitlines() if line.startswith("# HELP")]
    # `process_` is what every exporter calls the CPU time and memory of its process.
    assert all(name.startswith(("ebbtide_", "process_")) for name in names)


def test_a_part_of_the_database_that_etcd_does_not_tell_is_not_shown() -> None:
    metrics = Metrics()
    metrics.show_store(StoreStatus("3.6.16", 4096, 1024), "")
    shown = {part: metrics.registry.get_sample_value("ebbtide_store_database_bytes", {"part": part}) for part in PARTS}
    assert shown == {"file": 4096, "in_use": 1024, "quota": None}


def test_the_version_of_etcd_is_one_series_also_after_an_upgrade() -> None:
    metrics = Metrics()
    metrics.show_store(StoreStatus("3.5.29", 1), "leaks")
    metrics.show_store(StoreStatus("3.6.16", 1), "")
    page = generate_latest(metrics.registry).decode()
    shown = [line for line in page.splitlines() if line.startswith("ebbtide_store_version_info")]
    assert shown == ['ebbtide_store_version_info{judgement="fine",version="3.6.16"} 1.0']
    metrics.show_store(StoreStatus("", 1), "")
    assert "ebbtide_store_version_info{" not in generate_latest(metrics.registry).decode()


def test_outcomes_that_a_pod_makes_up_share_one_series() -> None:
    metrics = Metrics()
    metrics.count_tasks(KEY, dict.fromkeys(TASK_OUTCOMES, 1))
    for number in range(1000):
        metrics.count_tasks(KEY, {f"made-up-{number}": 2})
    lines = generate_latest(metrics.registry).decode().splitlines()
    series = [line for line in lines if line.startswith("ebbtide_drained_tasks_total{")]
    assert len(series) == len(TASK_OUTCOMES) + 1
    assert _tasks(metrics, "other") == 2000
    assert _tasks(metrics, "finished") == 1


def test_a_tally_below_zero_is_not_counted_and_stops_nothing() -> None:
    metrics = Metrics()
    metrics.count_tasks(KEY, {"finished": -5, "failed": 1})
    assert _tasks(metrics, "finished") is None
    assert _tasks(metrics, "failed") == 1


def _tasks(metrics: Metrics, outcome: str) -> float | None:
    labels = {"namespace": "shop", "kind": "deployment", "workload": "orders", "outcome": outcome}
    return metrics.registry.get_sample_value("ebbtide_drained_tasks_total", labels)
