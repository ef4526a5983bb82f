from __future__ import annotations

from typing import Any

from demo.discovery import target_groups


def pod(**status: str) -> dict[str, Any]:
    metadata = {
        "name": "a-1",
        "namespace": "shop",
        "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8471"},
    }
    return {"metadata": metadata, "status": {"phase": "Running", **status}}


def test_a_pod_is_a_target_with_the_labels_that_kubernetes_discovery_gives() -> None:
    assert target_groups([pod(podIP="10.0.0.7")]) == [
        {
            "targets": ["10.0.0.7"],
            "labels": {
                "__meta_kubernetes_namespace": "shop",
                "__meta_kubernetes_pod_name": "a-1",
                "__meta_kubernetes_pod_ip": "10.0.0.7",
                "__meta_kubernetes_pod_phase": "Running",
                "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
                "__meta_kubernetes_pod_annotation_prometheus_io_port": "8471",
            },
        }
    ]


def test_a_pod_without_an_address_is_no_target() -> None:
    assert target_groups([pod()]) == []
