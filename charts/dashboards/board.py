"""The dashboard `Ebbtide`: all drains, each workload, the operator's own health."""

from __future__ import annotations

import itertools
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from charts.dashboards import panels
from charts.dashboards.drain_panels import drains
from charts.dashboards.operator_panels import operator
from charts.dashboards.queries import OPERATOR, gauge
from charts.dashboards.workload_panels import pods, workloads


def board() -> Any:
    """Return the dashboard as a builder of the Grafana SDK."""
    dashboard = (
        builders.Dashboard("Ebbtide")
        .uid("ebbtide")
        .description("Rolling drains: what drains now, what became of it, and whether the operator is well.")
        .tags(["ebbtide", "kubernetes"])
        .readonly()
        .time("now-1h", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .annotation(_rollouts())
    )
    for variable in _variables():
        dashboard = dashboard.with_variable(variable)
    ids = itertools.count(1)
    for title, row in (
        ("Drains", drains()),
        ("Workloads", workloads()),
        ("Pods", pods()),
        ("Operator", operator()),
    ):
        dashboard = dashboard.with_row(builders.Row(title).id(next(ids)))
        for panel in row:
            dashboard = dashboard.with_panel(panel.id(next(ids)))
    return dashboard


def _variables() -> list[Any]:
    opted_in = f"ebbtide_workload_info{{{OPERATOR}}}"
    return [
        builders.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _variable("job", "Operator job", "label_values(ebbtide_build_info, job)"),
        _variable("pods_job", "Pods job", "label_values(ebbtide_tasks_active, job)"),
        _variable("namespace", "Namespace", f"label_values({opted_in}, namespace)"),
        _variable(
            "workload",
            "Workload",
            f'label_values(ebbtide_workload_info{{{OPERATOR}, namespace=~"$namespace"}}, workload)',
        ),
    ]


def _variable(name: str, label: str, query: str) -> Any:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(panels.DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(models.VariableOption(text="All", value="$__all"))
    )


def _rollouts() -> Any:
    rolling = gauge("ebbtide_rollout_phase", matchers='phase=~"RollingOut|RollingBack"')
    return (
        builders.AnnotationQuery()
        .name("Rollouts")
        .datasource(panels.DATASOURCE)
        .enable(True)
        .icon_color("blue")
        .expr(f"{rolling} == 1")
    )
