"""Ebbtide as a user installs it: images, `helm install`, and what can be asked of it from outside."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.localcluster import Cluster, images

ROOT = Path(__file__).parents[2]
NAMESPACE = "ebbtide-system"
RELEASE = "ebbtide"

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T], *, within_s: float = 60, every_s: float = 0.25) -> T:
    """Return the first true answer of `probe`; AssertionError with its last answer when the time is over."""
    deadline = time.monotonic() + within_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s: {what}; last answer: {answer!r}")
        time.sleep(every_s)


@dataclass(frozen=True)
class Installation:
    """One release in one cluster."""

    cluster: Cluster

    def get(self, *args: str) -> Any:
        return json.loads(self.cluster.kubectl("get", *args, "-o", "json").stdout)

    def items(self, *args: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(*args)["items"]
        return found

    def operator_pods(self) -> list[dict[str, Any]]:
        return [
            pod
            for pod in self.items("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator")
            if "deletionTimestamp" not in pod["metadata"]
        ]

    def ready(self) -> bool:
        """Say whether both operators serve, one of them leads, and its store answers."""
        pods = self.operator_pods()
        serving = [
            pod
            for pod in pods
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        ]
        if len(serving) < 2:
            return False
        pages = [self.metrics(pod["metadata"]["name"]) for pod in serving]
        return sum(value(page, "ebbtide_leader") for page in pages) == 1 and all(
            value(page, "ebbtide_store_healthy") == 1 for page in pages
        )

    def metrics(self, pod: str) -> str:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics"
        return self.cluster.kubectl("get", "--raw", path, check=False).stdout

    def metric(self, name: str, **labels: str) -> float:
        """Sum a metric over the operator's replicas."""
        return sum(value(self.metrics(pod["metadata"]["name"]), name, **labels) for pod in self.operator_pods())

    def events(self, namespace: str, reason: str) -> list[str]:
        return [
            event.get("message") or event.get("note", "")
            for event in self.items("events", "-n", namespace)
            if event.get("reason") == reason
        ]

    def drain(self, namespace: str, name: str) -> dict[str, Any]:
        """Return the status of a Deployment's Drain; empty where there is none yet."""
        answer = self.cluster.kubectl("get", "drain", f"deployment-{name}", "-n", namespace, "-o", "json", check=False)
        status: dict[str, Any] = json.loads(answer.stdout).get("status", {}) if answer.returncode == 0 else {}
        return status


def value(page: str, name: str, **labels: str) -> float:
    """Sum the samples of a metric whose labels include these."""
    total = 0.0
    for line in page.splitlines():
        found = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)(?: \d+)?", line)
        if found is None:
            continue
        present = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[1] or ""))
        if labels.items() <= present.items():
            total += float(found[2])
    return total


def install(cluster: Cluster, *values: str) -> Installation:
    """Build and load the images, install the chart, and wait until it serves."""
    archives = {name: images.build(name) for name in ("etcd", "operator", "orders")}
    for archive in archives.values():
        cluster.load_image(archive)
    arguments = [part for setting in values for part in ("--set", setting)]
    cluster.helm(
        *("upgrade", "--install", RELEASE, str(ROOT / "charts" / "ebbtide"), "--namespace", NAMESPACE),
        *("--create-namespace", "--set", "image.tag=dev", "--set", "image.pullPolicy=Never"),
        # The tag stays where the image changes: in a cluster that was kept, this replaces the pods of the old one.
        *("--set-string", f"podAnnotations.image={archives['operator'].stem}"),
        *arguments,
    )
    installation = Installation(cluster)
    eventually("two operators serve and one leads", installation.ready, within_s=120)
    return installation


@contextmanager
def fresh_namespace(cluster: Cluster, name: str) -> Iterator[str]:
    cluster.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=true", "--timeout=120s", timeout_s=150)
