"""The alert rules are about metrics that the library has, and each says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from charts import alerts
from ebbtide.admin.exposition import Numbers, render
from ebbtide.protocol import PodState

SHOWN = render(Numbers(state=PodState.SERVING, active=1, oldest_age_s=0.0))


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: alert.name)
def test_an_alert_asks_for_series_that_the_library_shows(alert: alerts.Alert) -> None:
    for name, labels in re.findall(r"(ebbtide_\w+)(\{.*?\})?", alert.expression):
        assert f"\n{name}{labels}" in f"\n{SHOWN}", name
    for label in re.findall(r"\$labels\.(\w+)", alert.summary):
        assert label in {"namespace", "pod"} or f"{{{label}=" in SHOWN, label


def test_the_page_that_alerts_lead_to_names_each_of_them() -> None:
    page = Path(__file__).parents[3].joinpath(alerts.DOCS).read_text()
    for alert in alerts.ALERTS:
        assert f"`{alert.name}`" in page


def test_helm_would_not_end_the_text_early() -> None:
    assert "`" not in str(alerts.rules())
