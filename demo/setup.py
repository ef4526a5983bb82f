"""From nothing to a cluster with Ebbtide, the three Deployments, the load generator and a Prometheus."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tests import localcluster
from tests.localcluster import Cluster, images

from . import manifests
from .manifests import MONITORING, ROOT, SHOP, Subject

RELEASE = "ebbtide"
OPERATOR_NAMESPACE = "ebbtide-system"
IMAGES = ("etcd", "operator", "orders", "prometheus")
READY_WITHIN = "--timeout=180s"

Say = Callable[[str], None]


def start_cluster(name: str, say: Say) -> Cluster:
    """Start the cluster, or take the one that runs, and give it the images."""
    say(f"cluster {name}: up, or reuse")
    cluster = localcluster.up(name=name)
    for image in IMAGES:
        say(f"image {image}: build and load")
        cluster.load_image(images.build(image))
    return cluster


def install_ebbtide(cluster: Cluster, say: Say) -> None:
    """Install the chart as a user would, with the images that were just built."""
    say("helm upgrade --install ebbtide charts/ebbtide")
    repository, tag = images.reference("operator").rsplit(":", 1)
    etcd_repository, etcd_tag = images.reference("etcd").rsplit(":", 1)
    values = {
        "image.repository": repository,
        "image.tag": tag,
        "image.pullPolicy": "Never",
        "etcd.image.repository": etcd_repository,
        "etcd.image.tag": etcd_tag,
        "etcd.image.pullPolicy": "Never",
    }
    settings = [part for key, value in values.items() for part in ("--set-string", f"{key}={value}")]
    chart = str(ROOT / "charts" / "ebbtide")
    place = ("--namespace", OPERATOR_NAMESPACE, "--create-namespace")
    cluster.helm("upgrade", "--install", RELEASE, chart, *place, *settings, "--wait", "--timeout", "180s")
    # The tag stays while the image changes: running pods would keep the old one.
    cluster.kubectl("-n", OPERATOR_NAMESPACE, "rollout", "restart", f"deployment/{RELEASE}")
    cluster.kubectl("-n", OPERATOR_NAMESPACE, "rollout", "status", f"deployment/{RELEASE}", READY_WITHIN, timeout_s=200)


def deploy(cluster: Cluster, subjects: Sequence[Subject], replicas: int, say: Say) -> None:
    """Deploy everything anew, and wait until it is ready.

    The namespaces of an earlier demo stay: the namespace controller looks again only after half of the longest grace
    period in one, which is minutes here.
    """
    say(f"{SHOP}: {', '.join(subject.name for subject in subjects)}, {replicas} replicas each")
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (SHOP, MONITORING)]
    cluster.kubectl("apply", "-f", "-", input=json.dumps(manifests.as_list(namespaces)))
    for namespace in (SHOP, MONITORING):
        # In the foreground: a pod that is left over would be counted as one of the new Deployment's.
        everything = ("delete", "deployments,pods", "--all", "--cascade=foreground", "--timeout=400s")
        cluster.kubectl("-n", namespace, *everything, timeout_s=420)
    orders = images.reference("orders")
    shop = [*manifests.load(orders)]
    for subject in subjects:
        shop += manifests.orders(subject, replicas, orders)
    _apply(cluster, SHOP, shop)
    _apply(cluster, MONITORING, manifests.prometheus(images.reference("prometheus"), orders))
    cluster.kubectl("-n", SHOP, "wait", "--for=condition=Ready", "pod/load", READY_WITHIN, timeout_s=200)
    for namespace, name in [*((SHOP, subject.name) for subject in subjects), (MONITORING, "prometheus")]:
        cluster.kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", READY_WITHIN, timeout_s=200)


def _apply(cluster: Cluster, namespace: str, documents: list[manifests.Manifest]) -> None:
    cluster.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(manifests.as_list(documents)))
