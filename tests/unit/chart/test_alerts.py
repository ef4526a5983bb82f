"""The alert rules are about metrics that exist, and each says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from charts import alerts
from ebbtide.admin.exposition import Numbers, render
from ebbtide.protocol import PodState
from ebbtide_operator.metrics import WORKLOAD, Metrics, WorkloadGauges

SHOWN = render(Numbers(state=PodState.SERVING, active=1, oldest_age_s=0.0))
OF_SCRAPING = {"namespace", "pod"}
REPOSITORY = Path(__file__).parents[3]


def series(alert: alerts.Alert) -> list[tuple[str, str]]:
    """Return the metrics that an alert asks for, each with its selector."""
    return re.findall(r"(ebbtide_\w+)(\{.*?\})?", alert.expression)


def operator_labels() -> dict[str, set[str]]:
    """Return the names of the operator's series, each with its labels."""
    labels = {name: {*WORKLOAD, *extra} for name, (_, extra) in WorkloadGauges.GAUGES.items()}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            labels[f"{metric._name}_total" if isinstance(metric, Counter) else metric._name] = {*metric._labelnames}
    return labels


@pytest.mark.parametrize("alert", alerts.TASKS, ids=lambda alert: alert.name)
def test_an_alert_asks_for_series_that_the_library_shows(alert: alerts.Alert) -> None:
    for name, labels in series(alert):
        assert f"\n{name}{labels}" in f"\n{SHOWN}", name
    for label in re.findall(r"\$labels\.(\w+)", alert.summary):
        assert label in OF_SCRAPING or f"{{{label}=" in SHOWN, label


@pytest.mark.parametrize("alert", alerts.OPERATOR, ids=lambda alert: alert.name)
def test_an_alert_asks_for_series_that_the_operator_shows(alert: alerts.Alert) -> None:
    known = operator_labels()
    there = set(OF_SCRAPING)
    for name, selector in series(alert):
        assert set(re.findall(r"(\w+)=", selector)) <= known[name], name
        there |= known[name]
    assert set(re.findall(r"\$labels\.(\w+)", alert.summary)) <= there


def test_the_page_that_alerts_lead_to_names_each_of_them() -> None:
    page = REPOSITORY.joinpath(alerts.DOCS).read_text()
    named = re.findall(r"^\| `(Ebbtide\w+)` \| (\w+), (\d+ \w+|at once)", page, re.MULTILINE)
    expected = [
        (alert.name, alert.severity, "at once" if alert.lasting == "0m" else re.sub(r"m$", " min", alert.lasting))
        for group in alerts.GROUPS.values()
        for alert in group
    ]
    assert named == [(name, severity, re.sub(r"(\d)h$", r"\1 h", lasting)) for name, severity, lasting in expected]


def test_helm_would_not_end_the_text_early() -> None:
    assert "`" not in str([alerts.rules(group) for group in alerts.GROUPS.values()])
