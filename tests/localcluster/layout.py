"""Where a local cluster keeps its files, and which addresses it uses."""

import ipaddress
import json
import os
import re
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from tests.localcluster.errors import ClusterError

SLOTS = 16
CONTROL_PLANE = "control-plane"
API_PORT = 6443
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
_LONGEST_SOCKET_PATH = 107  # sun_path of unix(7), less its closing zero


@dataclass(frozen=True)
class Network:
    """The addresses of the cluster in one slot: 10.224.0.0/16 for slot 0, 10.225.0.0/16 for slot 1, and so on."""

    slot: int

    @property
    def whole(self) -> IPv4Network:
        return ipaddress.IPv4Network(f"10.{224 + self.slot}.0.0/16")

    def _at(self, offset: int) -> IPv4Address:
        return self.whole.network_address + offset

    @property
    def link(self) -> IPv4Network:
        """Between this host and the control plane."""
        return IPv4Network((self._at(0), 30))

    @property
    def host(self) -> IPv4Address:
        """This host as pods see it."""
        return self._at(1)

    @property
    def uplink(self) -> IPv4Address:
        """The control plane as this host sees it: the next hop to everything in the cluster."""
        return self._at(2)

    @property
    def nodes(self) -> IPv4Network:
        return IPv4Network((self._at(1 << 8), 24))

    @property
    def control_plane(self) -> IPv4Address:
        return self._at((1 << 8) + 1)

    def node(self, index: int) -> IPv4Address:
        """Return the address of node 1, 2, …"""
        return self._at((1 << 8) + 10 + index)

    @property
    def services(self) -> IPv4Network:
        return IPv4Network((self._at(96 << 8), 20))

    @property
    def kubernetes_service(self) -> IPv4Address:
        return self._at((96 << 8) + 1)

    @property
    def pods(self) -> IPv4Network:
        return IPv4Network((self._at(128 << 8), 17))

    def pods_of(self, index: int) -> IPv4Network:
        """Return the pod addresses of node 1, 2, …: 1022 each."""
        return list(self.pods.subnets(new_prefix=22))[index - 1]

    @property
    def device(self) -> str:
        """This host's end of the link; the kernel lets only one cluster have it."""
        return f"ebbtide{self.slot}"

    @property
    def cgroup(self) -> str:
        return f"ebbtide-{self.slot}"


@dataclass(frozen=True)
class Spec:
    """What a cluster was asked to be.

    Attributes:
        controller_manager_qps: client rate of the controller-manager per second; None leaves its default (20, burst
            30).
    """

    name: str
    nodes: int = 1
    controller_manager_qps: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ClusterError(
                f"cluster name {self.name!r}: use at most 30 lower-case letters, digits and inner hyphens"
            )
        if not 1 <= self.nodes <= 8:
            raise ClusterError(f"nodes={self.nodes}: choose 1 to 8")
        if self.controller_manager_qps is not None and self.controller_manager_qps <= 0:
            raise ClusterError(f"controller_manager_qps={self.controller_manager_qps}: must be above 0, or None")

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"node-{index}" for index in range(1, self.nodes + 1))

    @property
    def sandboxes(self) -> tuple[str, ...]:
        return (CONTROL_PLANE, *self.node_names)


@dataclass(frozen=True)
class Layout:
    """The state folder of one cluster."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def certificates(self) -> Path:
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def processes(self) -> Path:
        """One record per process that we started."""
        return self.root / "processes"

    def sandbox(self, name: str) -> Path:
        return self.root / name

    def configuration(self, sandbox: str) -> Path:
        return self.sandbox(sandbox) / "etc"

    def containerd_socket(self, node: str) -> Path:
        # Inside the node this is /run/containerd/containerd.sock; both names lead to the same inode.
        return self.sandbox(node) / "run" / "containerd" / "containerd.sock"

    def check(self, spec: Spec) -> None:
        """Refuse a state folder whose path is too long for the sockets in it."""
        longest = max(len(os.fsencode(self.containerd_socket(node))) for node in spec.node_names)
        if longest > _LONGEST_SOCKET_PATH:
            raise ClusterError(
                f"state folder {self.root}: its sockets' paths would have {longest} bytes, {_LONGEST_SOCKET_PATH} is "
                "the most; set EBBTIDE_STATE to a shorter path"
            )


def state_root() -> Path:
    """Return the folder of all clusters: `$EBBTIDE_STATE`, else `/var/lib/ebbtide` for root, and one at home."""
    if chosen := os.environ.get("EBBTIDE_STATE"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/ebbtide")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ebbtide"


def layout_of(name: str) -> Layout:
    """Return the layout of a cluster, whether it exists or not."""
    Spec(name)  # a name with a slash in it would lead out of the state folder
    return Layout(state_root() / name)


def write_record(layout: Layout, spec: Spec, slot: int, boot_id: str) -> None:
    """Write down what a cluster is, before anything of it exists."""
    text = json.dumps({"spec": asdict(spec), "slot": slot, "boot_id": boot_id}, indent=2)
    temporary = layout.record.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(layout.record)


@dataclass(frozen=True)
class Record:
    spec: Spec
    network: Network
    boot_id: str


def read_record(layout: Layout) -> Record | None:
    """Read what a cluster is; None where there is no (readable) record."""
    try:
        found = json.loads(layout.record.read_text())
        return Record(Spec(**found["spec"]), Network(int(found["slot"])), str(found["boot_id"]))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
