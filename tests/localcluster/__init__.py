"""A Kubernetes cluster for tests and demo: on this machine, or through kind where Docker runs."""

from __future__ import annotations

from tests.localcluster import kind, local
from tests.localcluster.cluster import Cluster
from tests.localcluster.errors import ClusterError

__all__ = ["Cluster", "ClusterError", "attach", "down", "status", "up"]


def up(name: str = "ebbtide", nodes: int = 1, *, controller_manager_qps: float | None = None) -> Cluster:
    """Start a cluster, or take the healthy one of this name.

    Raises:
        ClusterError: Something is missing or did not start; the message says what and how to mend it.
    """
    if kind.available():
        return kind.up(name)
    return local.up(name, nodes, controller_manager_qps=controller_manager_qps)


def attach(name: str) -> Cluster | None:
    """Return the healthy cluster of this name; None where there is none."""
    return kind.attach(name) if kind.available() else local.attach(name)


def down(name: str) -> None:
    """Remove a cluster and all that belongs to it."""
    if kind.available():
        kind.down(name)
    else:
        local.down(name)


def status(name: str) -> str:
    """Describe a cluster for a person."""
    return kind.status(name) if kind.available() else local.status(name)
