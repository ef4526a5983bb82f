"""The same interface over kind, where a Docker engine runs.

It cannot run where this was written (there is no Docker engine): its command lines are tested, the rest is not.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.localcluster import binaries
from tests.localcluster.cluster import Cluster
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import layout_of
from tests.localcluster.progress import say, step

CONFIGURATION = Path(__file__).parents[2] / "kind-config.yaml"


class KindCluster(Cluster):
    """A cluster whose nodes are Docker containers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kubeconfig = layout_of(name).kubeconfig

    @property
    def audit_log(self) -> Path | None:
        return None

    @property
    def pids(self) -> Mapping[str, int]:
        return {}

    @property
    def service_reachable_from_host(self) -> bool:
        return False

    def load_image(self, archive: Path) -> None:
        _run(load_command(self.name, archive))

    def container_pid(self, container_id: str) -> int:
        raise ClusterError(f"container {container_id}: its process is not this host's; this needs the local cluster")

    def down(self) -> None:
        down(self.name)


@functools.cache
def available() -> bool:
    """Say whether a Docker engine answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def up(name: str) -> KindCluster:
    """Create a cluster, or take the one of this name."""
    running = attach(name)
    if running is not None:
        say(f"cluster {name} runs already")
        return running
    cluster = KindCluster(name)
    cluster.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
    with step(f"creating kind cluster {name} (about 2 min the first time)"):
        _run(create_command(name, cluster.kubeconfig))
    return cluster


def attach(name: str) -> KindCluster | None:
    """Return the cluster of this name where its API server is ready."""
    cluster = KindCluster(name)
    if not cluster.kubeconfig.exists():
        return None
    ready = cluster.kubectl("get", "--raw", "/readyz", check=False, timeout_s=10)
    return cluster if ready.returncode == 0 else None


def down(name: str) -> None:
    """Delete a cluster."""
    _run(delete_command(name))
    shutil.rmtree(layout_of(name).root, ignore_errors=True)


def status(name: str) -> str:
    """Describe a cluster for a person."""
    cluster = attach(name)
    return f"kind cluster {name}: {'runs, kubeconfig ' + str(cluster.kubeconfig) if cluster else 'there is none'}"


def create_command(name: str, kubeconfig: Path) -> list[str]:
    """Return the command that creates a cluster."""
    return ["create", "cluster", "--name", name, "--config", str(CONFIGURATION), "--kubeconfig", str(kubeconfig)]


def load_command(name: str, archive: Path) -> list[str]:
    """Return the command that loads an image."""
    return ["load", "image-archive", str(archive), "--name", name]


def delete_command(name: str) -> list[str]:
    """Return the command that deletes a cluster."""
    return ["delete", "cluster", "--name", name]


def _run(arguments: list[str]) -> None:
    program = shutil.which("kind") or str(binaries.path("kind"))
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"kind {' '.join(arguments)} failed: {done.stderr.strip()}")
