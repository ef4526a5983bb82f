"""Keeps tests away from clusters that are not theirs."""

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import SLOTS, Network, state_root


def ensure_ours(kubeconfig: Path) -> None:
    """Refuse a kubeconfig that no cluster of ours wrote, or that has come to point elsewhere.

    Raises:
        ClusterError: it lies outside the state folder, or its server is no address of a local cluster.
    """
    root = state_root().resolve()
    if not kubeconfig.resolve().is_relative_to(root):
        raise ClusterError(f"{kubeconfig} is not in {root}: tests run only on clusters that they start themselves")
    document = yaml.safe_load(kubeconfig.read_text())
    contexts = {entry["name"]: entry["context"]["cluster"] for entry in document["contexts"]}
    servers = {entry["name"]: entry["cluster"]["server"] for entry in document["clusters"]}
    server = servers[contexts[document["current-context"]]]
    if not _is_local(urlsplit(server).hostname or ""):
        raise ClusterError(
            f"{kubeconfig}: its server {server} is no local cluster's; take the cluster down and start anew"
        )


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or any(address in Network(slot).whole for slot in range(SLOTS))
