"""The alert rules in Prometheus' own hands: each fires where it should, and says so; none where all is well."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts import alerts
from tests.localcluster import images

BY_NAME = {alert.name: alert for group in alerts.GROUPS.values() for alert in group}
OPERATOR = 'namespace="ebbtide-system", pod="ebbtide-0"'
ORDERS = 'namespace="shop", kind="Deployment", workload="orders"'
POD = 'namespace="shop", pod="orders-1"'
WELL = {
    "ebbtide_leader{" + OPERATOR + "}": "1x180",
    'ebbtide_leader{namespace="ebbtide-system", pod="ebbtide-1"}': "0x180",
    "ebbtide_store_healthy{" + OPERATOR + "}": "1x180",
    'ebbtide_store_database_bytes{part="file"}': "100x180",
    'ebbtide_store_database_bytes{part="quota"}': "200x180",
    'ebbtide_store_version_info{version="3.6.11", judgement="fine"}': "1x180",
    'ebbtide_fail_open_total{cause="store_away"}': "4x180",
    "ebbtide_drains_total{" + ORDERS + ', outcome="clean"}': "0+1x180",
    "ebbtide_drains_total{" + ORDERS + ', outcome="abandoned"}': "3x180",
    'ebbtide_reconcile_errors_total{reason="ApiError"}': "2x180",
    'ebbtide_certificate_expiration_timestamp_seconds{certificate="webhook"}': f"{40 * 86400}x180",
    "ebbtide_tasks_growth_per_second{" + POD + "}": "0.1x180",
    "ebbtide_tasks_trend{" + POD + ', shape="growth"}': "0x180",
    "ebbtide_tasks_trend{" + POD + ', shape="sawtooth"}': "0x180",
    "ebbtide_leaks_suspected{" + POD + ', rule="overdue"}': "0x180",
}
"""What all is well looks like, a sample a minute: also what failed long ago and does no more."""


@dataclass(frozen=True)
class Case:
    """Series that make one alert fire.

    Attributes:
        minute: By when it fires.
        labels: What it has then.
        says: Words of its summary.
        quiet: A minute in which it does not fire yet.
    """

    alert: str
    series: Mapping[str, str]
    minute: int
    labels: Mapping[str, str]
    says: str
    quiet: int = 0


CASES = (
    Case("EbbtideNobodyPlans", {"ebbtide_leader{" + OPERATOR + "}": "1x60 0x60"}, 67, {}, "No replica"),
    Case("EbbtideNobodyPlans", {"another": "1x60"}, 6, {}, "No replica"),
    Case(
        "EbbtideStoreAway",
        {"ebbtide_store_healthy{" + OPERATOR + "}": "1x60 0x60"},
        67,
        {"namespace": "ebbtide-system", "pod": "ebbtide-0"},
        "ebbtide-system/ebbtide-0 does not reach etcd",
    ),
    Case(
        "EbbtideStoreNearlyFull",
        {
            'ebbtide_store_database_bytes{part="file"}': "170x60",
            'ebbtide_store_database_bytes{part="quota"}': "200x60",
        },
        16,
        {},
        "85% of its quota",
    ),
    Case(
        "EbbtideStoreVersionBad",
        {'ebbtide_store_version_info{version="3.5.9", judgement="bad"}': "1x90"},
        61,
        {"version": "3.5.9", "judgement": "bad"},
        "etcd 3.5.9 has a known fault",
    ),
    Case("EbbtideFailsOpen", {'ebbtide_fail_open_total{cause="gone"}': "_x60 2x60"}, 62, {"cause": "gone"}, "2 pods"),
    Case(
        "EbbtideFailsOpen", {'ebbtide_fail_open_total{cause="gone"}': "7x60 9x60"}, 70, {"cause": "gone"}, "(gone)", 50
    ),
    Case(
        "EbbtideDrainsIncomplete",
        {"ebbtide_drains_total{" + ORDERS + ', outcome="cancelled"}': "_x90 3x30"},
        100,
        {"namespace": "shop", "kind": "Deployment", "workload": "orders", "outcome": "cancelled"},
        "3 drains of shop/orders ended as cancelled",
    ),
    Case(
        "EbbtideAnnotationInvalid",
        {"ebbtide_invalid_annotations{" + ORDERS + ', annotation="ebbtide.dev/quiesce"}': "1x60"},
        16,
        {"namespace": "shop", "kind": "Deployment", "workload": "orders", "annotation": "ebbtide.dev/quiesce"},
        "its annotation ebbtide.dev/quiesce cannot be used",
    ),
    Case(
        "EbbtideReconcileFails",
        {'ebbtide_reconcile_errors_total{reason="ApiError"}': "0+3x60"},
        20,
        {"reason": "ApiError"},
        "(ApiError)",
    ),
    Case(
        "EbbtideCertificateExpires",
        {'ebbtide_certificate_expiration_timestamp_seconds{certificate="webhook"}': f"{10 * 86400}x90"},
        61,
        {"certificate": "webhook"},
        "The certificate webhook ends in 9d",
    ),
    Case(
        "EbbtideTasksLeak",
        {
            "ebbtide_tasks_growth_per_second{" + POD + "}": "0.25x60",
            "ebbtide_tasks_trend{" + POD + ', shape="growth"}': "1x60",
        },
        31,
        {"namespace": "shop", "pod": "orders-1"},
        "shop/orders-1 starts more tasks than end: 0.25 per second",
    ),
    Case(
        "EbbtideTasksChurn",
        {"ebbtide_tasks_trend{" + POD + ', shape="sawtooth"}': "1x90"},
        61,
        {"namespace": "shop", "pod": "orders-1", "shape": "sawtooth"},
        "In shop/orders-1 tasks pile up",
    ),
    Case(
        "EbbtideLeaksSuspected",
        {"ebbtide_leaks_suspected{" + POD + ', rule="overdue"}': "2x60"},
        16,
        {"namespace": "shop", "pod": "orders-1", "rule": "overdue"},
        "shop/orders-1 has 2 tasks that look like leaks (overdue)",
    ),
)


def promtool(folder: Path, *tests: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run unit tests of all rules, as Prometheus runs them."""
    groups = [{"name": name, "rules": alerts.rules(group)} for name, group in alerts.GROUPS.items()]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    (folder / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": list(tests)})
    )
    program = images.prometheus_binaries()["promtool"]
    command = [str(program), "test", "rules", str(folder / "tests.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def firing(alert: str, minute: int, *expected: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": list(expected)}


def with_series(series: Mapping[str, str], *asked: Mapping[str, Any]) -> Mapping[str, Any]:
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": inputs, "alert_rule_test": list(asked)}


def test_nothing_fires_where_all_is_well(tmp_path: Path) -> None:
    asked = [firing(name, minute) for name in BY_NAME for minute in (80, 120, 170)]
    done = promtool(tmp_path, with_series(WELL, *asked))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_for_what_it_is_about_and_says_it(case: Case, tmp_path: Path) -> None:
    # promtool compares whole texts: it is asked with none first, and answers with what fires.
    done = promtool(tmp_path, with_series(case.series, firing(case.alert, case.minute)))
    assert done.returncode == 1, "it does not fire"
    told = done.stdout + done.stderr
    assert case.says in told
    for label, value in case.labels.items():
        assert f'{label}="{value}"' in told
    before = promtool(tmp_path, with_series(case.series, firing(case.alert, case.quiet)))
    assert before.returncode == 0, before.stdout + before.stderr


def test_every_alert_has_a_case() -> None:
    assert {case.alert for case in CASES} == set(BY_NAME)
