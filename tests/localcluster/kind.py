"""The same interface over kind, for machines with a Docker engine.

The nodes are containers, each with a systemd, a containerd and a kubelet; kubeadm sets them up. The API server writes
the same audit log as that of the local cluster, into the state folder, and a container's process is killed through the
containerd of its node: the demo and nearly all tests need no more than that.
"""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.localcluster import archives, binaries, locks
from tests.localcluster.cluster import Cluster, Status, run
from tests.localcluster.configuration import audit_policy
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import CONTROL_PLANE, Layout, Spec, layout_of
from tests.localcluster.progress import say, step

CONFIGURATION = Path(__file__).parents[2] / "kind-config.yaml"
IMAGE = "EBBTIDE_KIND_IMAGE"

_POLICY = "/etc/ebbtide/audit-policy.yaml"
_LOGS = "/var/log/ebbtide"


class KindCluster(Cluster):
    """A cluster whose nodes are containers of the Docker engine."""

    service_reachable_from_host = False

    def __init__(self, name: str) -> None:
        layout = layout_of(name)
        self.name = name
        self.kubeconfig = layout.kubeconfig
        self.audit_log = layout.audit_log

    def load_image(self, archive: Path) -> None:
        images = archives.read(archive)
        nodes = self.node_names()
        listings = [run(ctr_command(node, "images", "list")).stdout for node in nodes]
        if not all(archives.is_present(image, listing) for image in images for listing in listings):
            with step(f"loading {', '.join(name for image in images for name in image.names)} into {', '.join(nodes)}"):
                run(load_command(program(), self.name, archive, nodes), timeout_s=300)

    def node_names(self) -> list[str]:
        # The control plane takes no pods, as in the local cluster.
        containers = run(nodes_command(program(), self.name)).stdout.split()
        return sorted(name for name in containers if not name.endswith(f"-{CONTROL_PLANE}"))

    def kill_container(self, container_id: str) -> None:
        identifier = container_id.rpartition("/")[2]
        for node in self.node_names():
            if identifier in run(ctr_command(node, "tasks", "list", "--quiet")).stdout.split():
                run(ctr_command(node, "tasks", "kill", "--signal", "SIGKILL", identifier))
                return
        raise ClusterError(f"no process of container {container_id} runs on a node of {self.name}")

    def status(self) -> Status:
        if self.name not in run(clusters_command(program())).stdout.split():
            return Status(self.name, exists=False)
        return Status(self.name, exists=True, problems=tuple(self._problems()))

    def _problems(self) -> list[str]:
        asked = self.kubectl("get", "nodes", "--output", "json", check=False)
        if asked.returncode:
            return [asked.stderr.strip()]
        return [f"{node} is not ready" for node in unready(json.loads(asked.stdout))]

    def down(self) -> None:
        down(self.name)


@functools.cache
def available() -> bool:
    """Say whether a Docker engine answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def check() -> None:
    """Say whether a cluster can run here, as far as that can't be installed.

    Raises:
        ClusterError: no Docker engine answers.
    """
    if not available():
        raise ClusterError("kind needs a Docker engine, and `docker info` has no answer from one: start it")


def program() -> Path:
    """Return kind: the one on PATH, or the one compiled from the pinned module."""
    found = shutil.which("kind")
    return Path(found) if found else binaries.path("kind")


def prepare() -> None:
    """Compile the clients, and kind where it is not on PATH."""
    check()
    program()
    binaries.build(module for module in binaries.MODULES if module.name in {"kubernetes", "helm"})


def up(spec: Spec) -> KindCluster:
    """Create a cluster, or return the healthy one of that name; an unhealthy one is deleted first.

    Raises:
        ClusterError: no engine answers, the specification has what only the local cluster can do, a cluster of that
            name runs with other nodes, or it could not be created.
    """
    if spec.controller_manager_qps is not None:
        raise ClusterError(
            "controller_manager_qps is only for the local cluster: leave it out, or run as root on Linux"
        )
    prepare()
    layout = layout_of(spec.name)
    cluster = KindCluster(spec.name)
    with locks.of_cluster(layout):
        status = cluster.status()
        if status.healthy:
            _check_same(spec, cluster)
            say(f"cluster {spec.name} runs already")
            return cluster
        if status.exists:
            with step(f"deleting kind cluster {spec.name} ({'; '.join(status.problems)})"):
                _delete(layout, spec.name)
        with step(f"creating kind cluster {spec.name} (about 2 min the first time)"):
            file = _write_files(layout, spec)
            run(create_command(program(), spec.name, file, cluster.kubeconfig), timeout_s=600)
            # kind waits for the control plane only, and not for its DNS.
            cluster.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s", timeout_s=130)
            rollout = ("rollout", "status", "deployment/coredns", "--timeout=180s")
            cluster.kubectl("--namespace", "kube-system", *rollout, timeout_s=190)
    return cluster


def attach(name: str) -> KindCluster | None:
    """Return the cluster of that name; None where there is none."""
    cluster = KindCluster(name)
    return cluster if cluster.status().exists else None


def down(name: str) -> None:
    """Delete a cluster and its files; nothing happens where there is none.

    The engine keeps the images that it pulled and built, and the network `kind`, which all clusters of kind share.
    """
    check()
    layout = layout_of(name)
    with locks.of_cluster(layout, remove=True), step(f"deleting kind cluster {name}"):
        _delete(layout, name)


def _delete(layout: Layout, name: str) -> None:
    run(delete_command(program(), name, layout.kubeconfig), timeout_s=120)
    if layout.root.exists():
        shutil.rmtree(layout.root)


def _check_same(spec: Spec, cluster: KindCluster) -> None:
    found = len(cluster.node_names())
    if found != spec.nodes:
        raise ClusterError(
            f"cluster {spec.name} runs with nodes={found}, not nodes={spec.nodes}: take it down first "
            f"(python -m tests.localcluster down --name {spec.name}) or choose another name"
        )


def _write_files(layout: Layout, spec: Spec) -> Path:
    """Write what the nodes get of this machine, and return kind's configuration."""
    layout.configuration(CONTROL_PLANE).mkdir(parents=True, exist_ok=True)
    layout.logs.mkdir(exist_ok=True)
    _policy(layout).write_text(audit_policy())
    # The API server, root in its container, would make a log that only root may read; it appends to one that is there.
    layout.audit_log.touch()
    file = layout.root / "kind-config.yaml"
    adapted = configuration(yaml.safe_load(CONFIGURATION.read_text()), spec, layout, os.environ.get(IMAGE))
    file.write_text(yaml.safe_dump(adapted, sort_keys=False))
    return file


def _policy(layout: Layout) -> Path:
    return layout.configuration(CONTROL_PLANE) / "audit-policy.yaml"


def configuration(file: dict[str, Any], spec: Spec, layout: Layout, image: str | None = None) -> dict[str, Any]:
    """Adapt the repository's configuration: its nodes to what was asked for, and an audit log in the state folder.

    Args:
        image: the image of all nodes; None or empty leaves the pinned one.
    """
    control_plane = next(node for node in file["nodes"] if node["role"] == "control-plane")
    worker = next(node for node in file["nodes"] if node["role"] == "worker")
    mounts = [
        *control_plane.get("extraMounts", ()),
        {"hostPath": str(_policy(layout)), "containerPath": _POLICY, "readOnly": True},
        {"hostPath": str(layout.logs), "containerPath": _LOGS},
    ]
    nodes = [{**control_plane, "extraMounts": mounts}, *(dict(worker) for _ in range(spec.nodes))]
    return {
        **file,
        "name": spec.name,
        "nodes": [{**node, "image": image or node["image"]} for node in nodes],
        "kubeadmConfigPatches": [
            *file.get("kubeadmConfigPatches", ()),
            yaml.safe_dump(_audit_patch(layout.audit_log.name)),
        ],
    }


def _audit_patch(log: str) -> dict[str, Any]:
    # Without an apiVersion, and with arguments as a map, kind fits it to the version that kubeadm reads.
    arguments = {
        "audit-policy-file": _POLICY,
        "audit-log-path": f"{_LOGS}/{log}",
        "audit-log-maxsize": "4000",  # MB; a rotated log would lose its reader
    }
    volumes = [
        {"name": "audit-policy", "hostPath": _POLICY, "mountPath": _POLICY, "readOnly": True, "pathType": "File"},
        {"name": "audit-log", "hostPath": _LOGS, "mountPath": _LOGS, "readOnly": False, "pathType": "Directory"},
    ]
    return {"kind": "ClusterConfiguration", "apiServer": {"extraArgs": arguments, "extraVolumes": volumes}}


def unready(nodes: dict[str, Any]) -> list[str]:
    """Return the names of the nodes, as `kubectl get nodes --output json` has them, that are not ready."""
    return [
        node["metadata"]["name"]
        for node in nodes["items"]
        if not any(
            condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"]["conditions"]
        )
    ]


def create_command(kind: Path, name: str, file: Path, kubeconfig: Path) -> list[str]:
    """Return the command that creates a cluster; its access goes to a file of its own, not to the user's."""
    options = ["--name", name, "--config", str(file), "--kubeconfig", str(kubeconfig), "--wait", "120s"]
    return [str(kind), "create", "cluster", *options]


def delete_command(kind: Path, name: str, kubeconfig: Path) -> list[str]:
    """Return the command that deletes a cluster."""
    return [str(kind), "delete", "cluster", "--name", name, "--kubeconfig", str(kubeconfig)]


def load_command(kind: Path, name: str, archive: Path, nodes: list[str]) -> list[str]:
    """Return the command that loads an image archive into nodes."""
    return [str(kind), "load", "image-archive", str(archive), "--name", name, "--nodes", ",".join(nodes)]


def nodes_command(kind: Path, name: str) -> list[str]:
    """Return the command that lists a cluster's containers."""
    return [str(kind), "get", "nodes", "--name", name]


def clusters_command(kind: Path) -> list[str]:
    """Return the command that lists the clusters."""
    return [str(kind), "get", "clusters"]


def ctr_command(node: str, *arguments: str) -> list[str]:
    """Return the command that asks a node's containerd about what Kubernetes has there."""
    return ["docker", "exec", node, "ctr", "--namespace", "k8s.io", *arguments]
