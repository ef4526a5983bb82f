"""The dashboard is generated, keeps the rules, and asks for metrics that exist; the rules find what breaks them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram

from charts.dashboards import generate
from charts.dashboards.lint import SELECTOR, lint, metrics_used, panels
from charts.dashboards.queries import PODS
from ebbtide.admin.exposition import Numbers, render
from ebbtide.protocol import PodState
from ebbtide_operator.metrics import WORKLOAD, Metrics, WorkloadGauges

DASHBOARD: dict[str, Any] = json.loads(generate.OUTPUT.read_text())

# The operator's metrics and the pods' own: what a panel may ask for, each with the labels that its matchers may name.
OF_OPERATOR = {name: {*WORKLOAD, *extra} for name, (_, extra) in WorkloadGauges.GAUGES.items()}
OF_OPERATOR["ebbtide_build_info"] = set()
for metric in vars(Metrics()).values():
    if isinstance(metric, Counter | Gauge | Histogram):
        OF_OPERATOR[metric._name + ("_total" if isinstance(metric, Counter) else "")] = set(metric._labelnames)
NUMBERS = Numbers(state=PodState.SERVING, active=1, oldest_age_s=1, store_connected=True, max_tasks=1000)
OF_PODS = {line.split()[2] for line in render(NUMBERS).splitlines() if line.startswith("# TYPE")}


def test_is_the_generated_one() -> None:
    assert generate.OUTPUT.read_text() == generate.render()


def test_keeps_every_rule() -> None:
    assert [str(finding) for finding in lint(DASHBOARD)] == []


def test_fits_a_config_map() -> None:
    assert generate.OUTPUT.stat().st_size < 2**20


def test_asks_for_metrics_that_exist_and_for_all_of_them() -> None:
    used = metrics_used(DASHBOARD)
    known = OF_OPERATOR.keys() | OF_PODS
    assert used - known == set()
    assert known - used == set()


@pytest.mark.parametrize(
    ("workloads", "pod", "shown"),
    [
        ("orders", "orders-6d4cf56db6-x7k2p", True),
        ("orders", "orders-plain-6d4cf56db6-x7k2p", False),
        ("orders-plain", "orders-plain-6d4cf56db6-x7k2p", True),
        ("orders|orders-plain", "orders-plain-6d4cf56db6-x7k2p", True),
        ("orders", "reorders-6d4cf56db6-x7k2p", False),
        # The API server cuts a pod's name to 58 characters before it adds five.
        ("o" * 50, f"{'o' * 50}-6d4cf56x7k2p", True),
    ],
)
def test_a_workload_shows_its_own_pods(workloads: str, pod: str, shown: bool) -> None:
    (pattern,) = re.findall(r'pod=~"(.*)"', PODS)
    assert bool(re.fullmatch(pattern.replace("$workload", workloads), pod)) is shown


def test_matchers_name_labels_that_exist() -> None:
    expressions = [target["expr"] for panel in panels(DASHBOARD) for target in panel["targets"]]
    asked = [found for text in expressions for found in SELECTOR.findall(text)]
    assert len(asked) > 40
    for name, matchers in asked:
        labels = OF_OPERATOR.get(
            name.removesuffix("_bucket"), {"namespace", "pod", "outcome", "reason", "shape", "state"}
        )
        assert set(re.findall(r"(\w+)(?:=|!)", matchers)) <= {"job", *labels}, name


def first(dashboard: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(panel for panel in dashboard["panels"] if panel["type"] == kind)


def _of_variable(variable: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(dashboard: dict[str, Any]) -> None:
        next(one for one in dashboard["templating"]["list"] if one["name"] == variable).update(changes)

    return change


def _of_panel(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda dashboard: first(dashboard, "timeseries").update(changes)


def _of_query(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda dashboard: first(dashboard, "timeseries")["targets"][0].update(changes)


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("uneditable", lambda dashboard: dashboard.update(editable=True)),
        ("identity", lambda dashboard: dashboard.update(uid="")),
        ("template-datasource", _of_variable("datasource", query="loki")),
        ("template-job", _of_variable("job", name="jobs")),
        ("template-promql", _of_variable("namespace", query="up")),
        ("template-reload", _of_variable("namespace", refresh=1)),
        ("template-all", _of_variable("namespace", multi=False)),
        ("panel-title", _of_panel(title="")),
        ("unique-title", _of_panel(title="Tasks left")),
        ("panel-description", _of_panel(description="Pods.")),
        ("panel-unit", _of_panel(fieldConfig={"defaults": {"unit": "pods"}})),
        ("panel-target", _of_panel(targets=[])),
        ("panel-datasource", _of_panel(datasource={"uid": "P1234"})),
        ("grid", _of_panel(gridPos={"x": 0, "y": 1, "w": 4, "h": 4})),
        ("grid", _of_panel(gridPos={"x": 20, "y": 900, "w": 12, "h": 4})),
        ("target-promql", _of_query(expr='sum(up{job=~"$job"}')),
        ("target-promql", _of_query(expr="")),
        ("target-rate-interval", _of_query(expr='rate(ebbtide_drains_total{job=~"$job"}[5m])')),
        ("target-job", _of_query(expr='sum(ebbtide_pods{namespace="a"})')),
        ("target-job", _of_query(expr="sum(ebbtide_pods)")),
        ("target-counter", _of_query(expr='sum(ebbtide_drains_total{job=~"$job"})')),
        ("target-legend", _of_query(expr='sum by (state) (ebbtide_pods{job=~"$job"})', legendFormat="{{pod}}")),
    ],
)
def test_finds_what_breaks_the_rule(rule: str, change: Callable[[dict[str, Any]], None]) -> None:
    broken = copy.deepcopy(DASHBOARD)
    change(broken)
    assert rule in {finding.rule for finding in lint(broken)}
