"""The same interface over kind, for machines with a Docker engine.

Nothing here has been run against an engine: where it was written there was none. Its command lines and its
configuration are tested as text, and the configuration is loaded with kind's own loader.
"""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.localcluster import archives, binaries
from tests.localcluster.cluster import Cluster, Status, run
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import Spec, layout_of
from tests.localcluster.progress import say, step

CONFIGURATION = Path(__file__).parents[2] / "kind-config.yaml"


class KindCluster(Cluster):
    """A cluster whose nodes are containers of the Docker engine."""

    audit_log = None
    service_reachable_from_host = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.kubeconfig = layout_of(name).kubeconfig

    def load_image(self, archive: Path) -> None:
        images = archives.read(archive)
        listings = [run(list_images_command(node)).stdout for node in self._containers()]
        if not all(archives.is_present(image, listing) for image in images for listing in listings):
            run(load_command(program(), self.name, archive), timeout_s=300)

    def node_names(self) -> list[str]:
        # The control plane takes no pods, as in the local cluster.
        return [name for name in self._containers() if not name.endswith("-control-plane")]

    def _containers(self) -> list[str]:
        return sorted(run(nodes_command(program(), self.name)).stdout.split())

    @property
    def pids(self) -> dict[str, int]:
        return {}

    def container_pid(self, container_id: str) -> int:
        raise ClusterError(f"the process of {container_id} is the engine's, not this machine's; use the local cluster")

    def restart(self, component: str) -> int:
        raise ClusterError(f"{component} is a process of a container; to stop and start it, use the local cluster")

    def status(self) -> Status:
        if self.name not in run(clusters_command(program())).stdout.split():
            return Status(self.name, exists=False)
        ready = self.kubectl("get", "--raw=/readyz", check=False)
        return Status(self.name, exists=True, problems=() if ready.returncode == 0 else (ready.stderr.strip(),))

    def down(self) -> None:
        down(self.name)


@functools.cache
def available() -> bool:
    """Say whether a Docker engine answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def program() -> Path:
    """Return kind: the one on PATH, or the one compiled from the pinned module."""
    found = shutil.which("kind")
    return Path(found) if found else binaries.path("kind")


def prepare() -> None:
    """Compile the clients, and kind where it is not on PATH."""
    program()
    binaries.build(module for module in binaries.MODULES if module.name in {"kubernetes", "helm"})


def up(spec: Spec) -> KindCluster:
    """Create a cluster, or return the healthy one of that name.

    Raises:
        ClusterError: the specification has what only the local cluster can do.
    """
    if spec.controller_manager_qps is not None:
        raise ClusterError(
            "controller_manager_qps is only for the local cluster: leave it out, or run as root on Linux"
        )
    cluster = KindCluster(spec.name)
    status = cluster.status()
    if status.healthy:
        say(f"cluster {spec.name} runs already")
        return cluster
    if status.exists:
        cluster.down()
    root = layout_of(spec.name).root
    root.mkdir(parents=True, exist_ok=True)
    file = root / "kind-config.yaml"
    file.write_text(yaml.safe_dump(configuration(yaml.safe_load(CONFIGURATION.read_text()), spec), sort_keys=False))
    with step(f"creating kind cluster {spec.name} (about 2 min the first time)"):
        run(create_command(program(), spec.name, file, cluster.kubeconfig), timeout_s=600)
    return cluster


def attach(name: str) -> KindCluster | None:
    """Return the cluster of that name; None where there is none."""
    cluster = KindCluster(name)
    return cluster if cluster.status().exists else None


def down(name: str) -> None:
    """Delete a cluster and its files; nothing happens where there is none."""
    layout = layout_of(name)
    run(delete_command(program(), name, layout.kubeconfig), timeout_s=120)
    if layout.root.exists():
        shutil.rmtree(layout.root)


def configuration(file: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """Adapt the repository's configuration: the control plane, and as many workers as nodes were asked for."""
    nodes = file["nodes"]
    control_planes = [node for node in nodes if node["role"] == "control-plane"]
    worker = next(node for node in nodes if node["role"] == "worker")
    return {**file, "name": spec.name, "nodes": [*control_planes, *(dict(worker) for _ in range(spec.nodes))]}


def create_command(kind: Path, name: str, file: Path, kubeconfig: Path) -> list[str]:
    """Return the command that creates a cluster; its access goes to a file of its own, not to the user's."""
    options = ["--name", name, "--config", str(file), "--kubeconfig", str(kubeconfig), "--wait", "120s"]
    return [str(kind), "create", "cluster", *options]


def delete_command(kind: Path, name: str, kubeconfig: Path) -> list[str]:
    """Return the command that deletes a cluster."""
    return [str(kind), "delete", "cluster", "--name", name, "--kubeconfig", str(kubeconfig)]


def load_command(kind: Path, name: str, archive: Path) -> list[str]:
    """Return the command that loads an image archive into every node."""
    return [str(kind), "load", "image-archive", str(archive), "--name", name]


def nodes_command(kind: Path, name: str) -> list[str]:
    """Return the command that lists a cluster's containers."""
    return [str(kind), "get", "nodes", "--name", name]


def clusters_command(kind: Path) -> list[str]:
    """Return the command that lists the clusters."""
    return [str(kind), "get", "clusters"]


def list_images_command(container: str) -> list[str]:
    """Return the command that lists what images a node has."""
    return ["docker", "exec", container, "ctr", "--namespace", "k8s.io", "images", "list"]
