"""Chooses how a cluster is made: as processes of this machine, or by kind."""

import os
import sys

from tests.localcluster import capabilities, kind, local
from tests.localcluster.cluster import Cluster, Status
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import Spec

CHOICE = "EBBTIDE_CLUSTER"


def choose(choice: str | None, *, linux_root: bool, docker: bool) -> str:
    """Return `local` or `kind`.

    The local cluster comes first: it needs no engine, lets faults be made, and is what the project is measured with.

    Args:
        choice: what `EBBTIDE_CLUSTER` says; None or empty leaves it open.

    Raises:
        ClusterError: neither can run here, or the choice is unknown.
    """
    match choice:
        case "local" | "kind":
            return choice
        case None | "":
            if linux_root:
                return "local"
            if docker:
                return "kind"
            raise ClusterError("no cluster can run here: run as root on Linux, or start a Docker engine")
        case _:
            raise ClusterError(f"{CHOICE}={choice}: use local or kind, or leave it out")


def _kind_chosen() -> bool:
    linux_root = sys.platform == "linux" and os.geteuid() == 0
    docker = False if linux_root else kind.available()
    return choose(os.environ.get(CHOICE), linux_root=linux_root, docker=docker) == "kind"


def up(name: str = "ebbtide", nodes: int = 1, *, controller_manager_qps: float | None = None) -> Cluster:
    """Start a cluster, or return the healthy one of that name; an unhealthy one is replaced.

    Args:
        nodes: how many nodes take pods.
        controller_manager_qps: its client rate per second, with a burst of one and a half times that. None is its
            default, 20 and 30, which bounds a plain rollout.

    Raises:
        ClusterError: it can't run here, runs with another specification, or did not start; the message says what to do.
    """
    spec = Spec(name, nodes, controller_manager_qps)
    return kind.up(spec) if _kind_chosen() else local.up(spec)


def check() -> None:
    """Say whether a cluster can run here, as far as that can't be installed.

    Raises:
        ClusterError: it can't; the message says why.
    """
    if _kind_chosen():
        kind.check()
    else:
        capabilities.check()


def prepare() -> None:
    """Install and compile in advance what `up` would: minutes the first time, nothing after.

    Raises:
        ClusterError: no cluster can run here, or something is missing; the message says what to do.
    """
    if _kind_chosen():
        kind.prepare()
    else:
        local.prepare()


def attach(name: str) -> Cluster | None:
    """Return the cluster of that name, healthy or not; None where there is none."""
    return kind.attach(name) if _kind_chosen() else local.attach(name)


def status(name: str) -> Status:
    """Look how a cluster is."""
    cluster = attach(name)
    return cluster.status() if cluster else Status(name, exists=False)


def down(name: str) -> None:
    """Take a cluster down, whatever state it is in; nothing happens where there is none.

    Raises:
        ClusterError: something of it could not be removed; the message names it.
    """
    if _kind_chosen():
        kind.down(name)
    else:
        local.down(name)
