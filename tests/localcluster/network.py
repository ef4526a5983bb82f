"""The cluster's network: one link from this host to the control plane, and the nodes on a bridge behind it.

Each sandbox has its own network namespace, so the rules of kube-proxy, the routes and the devices end with it, and
clusters side by side do not meet. On this host there are one device and one route per cluster.
"""

import json
import subprocess
from ipaddress import IPv4Network

from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import CONTROL_PLANE, Network


def commands(network: Network, sandbox_pids: dict[str, int]) -> list[tuple[int | None, list[str]]]:
    """Render the network as `ip` commands.

    This host reaches the control plane over one link and everything else through it; each node hangs on a bridge in the
    control plane. The host neither forwards nor translates anything.

    Args:
        sandbox_pids: the first process of the control plane and of each node.

    Returns:
        Batches in order: whose network namespace (None: the host's), and its commands.
    """
    nodes = {name: pid for name, pid in sandbox_pids.items() if name != CONTROL_PLANE}
    center = sandbox_pids[CONTROL_PLANE]
    host = [f"link add {network.device} type veth peer name uplink netns {center}"]
    inner = [
        "link set lo up",
        "link add nodes type bridge",
        f"addr add {network.control_plane}/{network.nodes.prefixlen} dev nodes",
        "link set nodes up",
        f"addr add {network.uplink}/{network.link.prefixlen} dev uplink",
        "link set uplink up",
        f"route add default via {network.host}",
    ]
    batches: list[tuple[int | None, list[str]]] = []
    for index, (name, pid) in enumerate(nodes.items(), start=1):
        inner += [
            f"link add {name} type veth peer name eth0 netns {pid}",
            f"link set {name} master nodes up",
            f"route add {network.pods_of(index)} via {network.node(index)}",
        ]
        batches.append(
            (
                pid,
                [
                    "link set lo up",
                    f"addr add {network.node(index)}/{network.nodes.prefixlen} dev eth0",
                    "link set eth0 up",
                    f"route add default via {network.control_plane}",
                    *(
                        f"route add {network.pods_of(other)} via {network.node(other)}"
                        for other in range(1, len(nodes) + 1)
                        if other != index
                    ),
                ],
            )
        )
    inner.append(f"route add {network.services} via {network.node(1)}")
    # The device comes up before its route, or the kernel refuses the next hop.
    outer = [
        f"addr add {network.host}/{network.link.prefixlen} dev {network.device}",
        f"link set {network.device} up",
        f"route add {network.whole} via {network.uplink}",
    ]
    return [(None, host), (center, inner), *batches, (None, outer)]


def connect(network: Network, sandbox_pids: dict[str, int]) -> None:
    """Make the devices, addresses and routes of a cluster.

    Raises:
        ClusterError: the kernel refused one; the message has its command.
    """
    for namespace, batch in commands(network, sandbox_pids):
        prefix = [] if namespace is None else ["nsenter", f"--net=/proc/{namespace}/ns/net"]
        done = subprocess.run(
            [*prefix, "ip", "-batch", "-"], input="\n".join(batch), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(
                f"setting up the network failed: {done.stderr.strip()}; the commands were:\n" + "\n".join(batch)
            )


def disconnect(network: Network) -> None:
    """Remove this host's end of the link, where it is still there; its route goes with it."""
    if exists(network):
        subprocess.run(["ip", "link", "delete", network.device], capture_output=True, check=False)


def exists(network: Network) -> bool:
    """Say whether this host's end of the link is there."""
    return subprocess.run(["ip", "link", "show", network.device], capture_output=True, check=False).returncode == 0


def routes() -> list[IPv4Network]:
    """Return the destinations that this host has routes to, without the default route."""
    shown = subprocess.run(
        ["ip", "-4", "-json", "route", "show", "table", "all"], capture_output=True, text=True, check=True
    )
    return [IPv4Network(route["dst"]) for route in json.loads(shown.stdout or "[]") if route["dst"] != "default"]
