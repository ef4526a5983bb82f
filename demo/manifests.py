"""What the demo applies: the example's manifests, three times, and a Prometheus.

The three Deployments are made from one manifest. What differs is written in `SUBJECTS` and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ebbtide_operator.core import names
from examples.orders.orders.app import Mode

from .history import DEPLOYMENT_LABEL

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "orders" / "kubernetes"
OWN = Path(__file__).parent / "kubernetes"

SHOP = "shop"
"""Namespace of the Deployments and the load."""
MONITORING = "monitoring"
"""Namespace of the Prometheus; its manifest names it too."""
LIBRARY_METRICS_PORT = 8471

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the Deployments that are compared."""

    name: str
    mode: Mode
    grace_period_s: int = 30
    annotations: Mapping[str, str] = field(default_factory=dict)
    """On the Deployment."""
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    process_1: bool = False
    """Whether the service is process 1 of its container, without an init, and so hears no SIGTERM by default."""

    @property
    def managed(self) -> bool:
        return self.mode is Mode.EBBTIDE

    @property
    def url(self) -> str:
        """Where its orders are placed, from within its namespace."""
        return f"http://{self.name}/orders"


SUBJECTS = (
    Subject("orders-plain", Mode.PLAIN),
    Subject("orders-graceful", Mode.GRACEFUL, grace_period_s=300),
    Subject(
        "orders-managed",
        Mode.EBBTIDE,
        annotations={names.DRAIN: "managed", names.DRAIN_TIMEOUT: "60s"},
        pod_annotations={"prometheus.io/scrape": "true", "prometheus.io/port": str(LIBRARY_METRICS_PORT)},
    ),
)


def load_documents(path: Path) -> list[Manifest]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def orders(subject: Subject, replicas: int, image: str) -> list[Manifest]:
    """Return the Deployment and the Service of one subject."""
    deployment, service = copy.deepcopy(load_documents(EXAMPLE / "orders.yaml"))
    labels = {DEPLOYMENT_LABEL: subject.name}
    deployment["metadata"] |= {"name": subject.name, "labels": labels, "annotations": dict(subject.annotations)}
    deployment["spec"] |= {"replicas": replicas, "selector": {"matchLabels": labels}}
    template = deployment["spec"]["template"]
    template["metadata"] = {"labels": labels, "annotations": dict(subject.pod_annotations)}
    template["spec"]["terminationGracePeriodSeconds"] = subject.grace_period_s
    template["spec"]["shareProcessNamespace"] = not subject.process_1
    (container,) = template["spec"]["containers"]
    container["image"] = image
    for variable in container["env"]:
        if variable["name"] == "ORDERS_MODE":
            variable["value"] = str(subject.mode)
    service["metadata"]["name"] = subject.name
    service["spec"]["selector"] = labels
    return [deployment, service]


def load(image: str) -> list[Manifest]:
    """Return the load generator's pod and Service."""
    pod, service = load_documents(EXAMPLE / "load.yaml")
    pod["spec"]["containers"][0]["image"] = image
    return [pod, service]


def prometheus(image: str, python: str) -> list[Manifest]:
    """Return the Prometheus and all that it needs.

    Args:
        image: Of Prometheus.
        python: Any image with Python, for the discovery of pods.
    """
    documents = load_documents(OWN / "prometheus.yaml")
    for document in documents:
        if document["kind"] == "Deployment":
            for container in document["spec"]["template"]["spec"]["containers"]:
                container["image"] = {"prometheus": image, "discovery": python}[container["name"]]
        if document["kind"] == "ConfigMap":
            document["data"]["discovery.py"] = (ROOT / "demo" / "discovery.py").read_text()
    return documents


def as_list(documents: list[Manifest]) -> Manifest:
    """Return one object that `kubectl apply` takes."""
    return {"apiVersion": "v1", "kind": "List", "items": documents}
