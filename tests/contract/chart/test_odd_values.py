"""Values that meet the chart's own, names that YAML takes for numbers, and what the operator would refuse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from ebbtide_operator.core.annotations import LONGEST_CANCEL_GRACE_S, LONGEST_DRAIN_S, LONGEST_QUIESCE_S
from tests.contract.chart.rendering import (
    ALL_MONITORING,
    MONITORING,
    Document,
    merged,
    only,
    pod_templates,
    refusal,
    render,
    setting,
)

pytestmark = pytest.mark.timeout(900)

SELECTING = tuple(f"app.kubernetes.io/{name}" for name in ("name", "instance", "component"))
TELLING = (*(f"app.kubernetes.io/{name}" for name in ("version", "part-of", "managed-by")), "helm.sh/chart")


def labels(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every set of labels in an object, those of selectors and templates too."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in {"labels", "matchLabels", "selector"} and isinstance(value, dict):
                yield {key: one for key, one in value.items() if not isinstance(one, dict | list)}
            yield from labels(value)
    elif isinstance(node, list):
        for value in node:
            yield from labels(value)


def annotations_of(found: list[Document], kind: str) -> dict[str, str]:
    chosen = only(found, kind)["spec"]["template"]["metadata"]["annotations"]
    assert isinstance(chosen, dict)
    return chosen


def test_annotations_that_are_given_win_over_the_charts_own() -> None:
    off = {"podAnnotations": {"prometheus.io/scrape": "false", "kubectl.kubernetes.io/default-container": "a"}}
    found = render(merged(off, {"etcd": off}, {"crds": {"annotations": {"helm.sh/resource-policy": "delete"}}}))
    for kind, port in (("Deployment", "8080"), ("StatefulSet", "2381")):
        assert annotations_of(found, kind) == {
            "kubectl.kubernetes.io/default-container": "a",
            "prometheus.io/scrape": "false",
            "prometheus.io/port": port,
            "prometheus.io/path": "/metrics",
        }
    kept = only(found, "CustomResourceDefinition")["metadata"]["annotations"]
    assert kept == {"helm.sh/resource-policy": "delete"}


def test_of_a_label_that_is_given_twice_the_nearer_one_counts() -> None:
    near = {"labels": {"team": "near"}}
    values = merged(
        ALL_MONITORING,
        {"commonLabels": {"team": "far"}, "podLabels": near["labels"], "etcd": {"podLabels": near["labels"]}},
        {"monitoring": dict.fromkeys(("serviceMonitor", "podMonitor", "alerts", "dashboards"), near)},
    )
    found = render(values, apis=MONITORING)
    assert [pod["metadata"]["labels"]["team"] for _, pod in pod_templates(found)] == ["near", "near"]
    near_kinds = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"}
    for one in found:
        assert one["metadata"]["labels"]["team"] == ("near" if one["kind"] in near_kinds else "far"), one["kind"]


@pytest.mark.parametrize(
    ("field", "label"),
    [
        *itertools.product(("commonLabels", "podLabels", "etcd.podLabels"), SELECTING),
        *itertools.product(("commonLabels",), TELLING),
    ],
)
def test_labels_by_which_parts_are_found_cannot_be_replaced(field: str, label: str) -> None:
    assert f"{field}: {label} is the chart's own" in refusal(setting(field, {label: "other"}))


def test_a_pod_may_have_labels_that_the_chart_gives_to_other_objects_only() -> None:
    given = {"podLabels": dict.fromkeys(TELLING, "other")}
    for _, pod in pod_templates(render(merged(given, {"etcd": given}))):
        assert dict.fromkeys(TELLING, "other").items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("name", ["123", "true", "1e3", "null"])
def test_a_name_that_yaml_takes_for_something_else_stays_text(name: str) -> None:
    how: dict[str, Any]
    for values, how in (({}, {"release": name}), ({"nameOverride": name}, {})):
        found = render(merged(ALL_MONITORING, values), apis=MONITORING, **how)
        all_labels = [one for document in found for one in labels(document)]
        assert len(all_labels) > 30
        for one in all_labels:
            assert all(isinstance(value, str) for value in one.values()), one


def test_resources_whose_name_yaml_takes_for_something_else_are_refused() -> None:
    assert "fullnameOverride: the resources would be called true" in refusal({"fullnameOverride": "true"})


def test_no_namespace_besides_the_clusters_and_its_own_is_excluded_where_the_list_is_taken_away() -> None:
    assert render({"webhooks": {"excludeNamespaces": None}}) == render()


def test_an_etcd_image_needs_a_tag_or_a_digest() -> None:
    assert "etcd.image.tag: is needed" in refusal({"etcd": {"image": {"tag": ""}}})
    assert render({"etcd": {"image": {"tag": "", "digest": f"sha256:{'0' * 64}"}}})


@pytest.mark.parametrize(
    ("field", "longest_s", "longest"),
    [
        ("drainTimeout", LONGEST_DRAIN_S, "24h"),
        ("cancelGrace", LONGEST_CANCEL_GRACE_S, "10m"),
        ("quiesce", LONGEST_QUIESCE_S, "5m"),
    ],
)
def test_defaults_that_the_operator_would_refuse_are_refused(field: str, longest_s: float, longest: str) -> None:
    minutes = round(longest_s / 60)
    for good in (
        longest,
        f"{minutes}m",
        f"{minutes - 1}m59s999ms",
        f"{longest_s / 3600:.3f}h" if minutes > 60 else "0s",
    ):
        assert render({"defaults": {field: good}})
    for bad in ("48h", f"{minutes}m1ms", f"{minutes * 60000 + 1}ms"):
        assert f"defaults.{field}: must be {longest} at most, not {bad}" in refusal({"defaults": {field: bad}})
