"""A real Kubernetes on this machine without Docker: real programs in namespaces of their own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.localcluster import binaries, cgroups, components, configuration, packages, pause, processes, sandbox
from tests.localcluster.certificates import Authority, kubeconfig, signing_key, write_private
from tests.localcluster.cluster import Cluster
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import (
    API_PORT,
    CONTROL_PLANE,
    SLOTS,
    Layout,
    Network,
    Record,
    Spec,
    layout_of,
    read_record,
    state_root,
    write_record,
)
from tests.localcluster.progress import say, step

T = TypeVar("T")


class LocalCluster(Cluster):
    """A cluster whose processes are this machine's."""

    def __init__(self, layout: Layout, record: Record) -> None:
        self._layout = layout
        self._record = record
        self.name = record.spec.name
        self.kubeconfig = layout.kubeconfig

    @property
    def audit_log(self) -> Path | None:
        return self._layout.audit_log

    @property
    def pids(self) -> Mapping[str, int]:
        return {name: one.pid for name, one in processes.recorded(self._layout.processes).items() if one.alive()}

    @property
    def service_reachable_from_host(self) -> bool:
        return True

    def load_image(self, archive: Path) -> None:
        stat = archive.stat()
        identity = hashlib.sha256(f"{archive}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
        for node in self._record.spec.node_names:
            loaded = self._layout.sandbox(node) / "images" / identity
            if loaded.exists():
                continue
            _import(self._layout, node, archive)
            loaded.parent.mkdir(exist_ok=True)
            loaded.touch()

    def container_pid(self, container_id: str) -> int:
        wanted = container_id.partition("://")[2]
        for top in cgroups.existing(self._record.network.cgroup):
            for folder, _, _ in os.walk(top):
                if wanted in Path(folder).name:
                    listed = (Path(folder) / "cgroup.procs").read_text().split()
                    if listed:
                        return min(int(pid) for pid in listed)
        raise ClusterError(f"container {container_id}: no process of it runs here")

    def down(self) -> None:
        down(self.name)


def up(name: str, nodes: int = 1, *, controller_manager_qps: float | None = None) -> LocalCluster:
    """Start a cluster, or take the healthy one of this name.

    Raises:
        ClusterError: Something is missing or did not start; the message says what and how to mend it.
    """
    spec = Spec(name, nodes, controller_manager_qps)
    if os.geteuid() != 0:
        raise ClusterError("the local cluster needs root (or use Docker with kind): run this as root")
    running = attach(name)
    if running is not None and read_record(layout_of(name)) is not None:
        record = read_record(layout_of(name))
        if record is not None and record.spec == spec:
            say(f"cluster {name} runs already")
            return running
    packages.ensure(components.PACKAGES)
    binaries.build()
    layout = layout_of(name)
    layout.check(spec)
    if layout.root.exists():
        down(name)
    layout.root.mkdir(parents=True)
    with _slot(layout, spec) as network, step(f"starting cluster {name} ({nodes} node{'s' if nodes > 1 else ''})"):
        try:
            _start(spec, layout, network)
        except BaseException:
            say(f"the start failed; logs are in {layout.logs} until the next up or down")
            raise
    record = read_record(layout)
    assert record is not None
    return LocalCluster(layout, record)


def attach(name: str) -> LocalCluster | None:
    """Return the cluster of this name where all its processes live and its API server is ready."""
    layout = layout_of(name)
    record = read_record(layout)
    if record is None or record.boot_id != processes.boot_id():
        return None
    found = processes.recorded(layout.processes)
    if not found or not all(one.alive() for one in found.values()):
        return None
    cluster = LocalCluster(layout, record)
    ready = cluster.kubectl("get", "--raw", "/readyz", check=False, timeout_s=10)
    return cluster if ready.returncode == 0 else None


def down(name: str) -> None:
    """Remove a cluster, whole or in pieces, and check that nothing of it is left.

    Raises:
        ClusterError: Something could not be removed.
    """
    layout = layout_of(name)
    record = read_record(layout)
    if not layout.root.exists():
        say(f"cluster {name}: there is none")
        return
    with step(f"removing cluster {name}"):
        mark = _mark(layout)
        found = {pid: start for pid in processes.marked(mark) if (start := processes.start_time(pid)) is not None}
        if record is not None:
            # Containers do not carry the mark; their control groups name them.
            for pid in cgroups.processes(record.network.cgroup):
                start = processes.start_time(pid)
                if start is not None:
                    found[pid] = start
        # The first process of a sandbox takes all others of it along.
        processes.kill(found)
        if record is not None:
            _gone(f"device {record.network.device}", lambda: not _device_exists(record.network.device))
            cgroups.remove(record.network.cgroup)
        shutil.rmtree(layout.root)
        left = [*processes.marked(mark)]
        if left:
            raise ClusterError(f"cluster {name}: processes {left} came back")
    say(f"cluster {name}: no process, device, control group or file is left")


def status(name: str) -> str:
    """Describe a cluster for a person."""
    layout = layout_of(name)
    record = read_record(layout)
    if record is None:
        return f"cluster {name}: there is none"
    lines = [f"cluster {name}: {record.spec.nodes} node(s), API https://{record.network.control_plane}:{API_PORT}"]
    lines.append(f"  kubeconfig {layout.kubeconfig}")
    for component, process in processes.recorded(layout.processes).items():
        lines.append(f"  {component:<28} {'runs' if process.alive() else 'has ended'} (pid {process.pid})")
    return "\n".join(lines)


def _start(spec: Spec, layout: Layout, network: Network) -> None:
    mark = _mark(layout)
    layout.logs.mkdir()
    _write_configuration(spec, layout, network)
    cgroups.create(network.cgroup, spec.node_names)
    sandboxes = {name: sandbox.create(layout, mark, name) for name in spec.sandboxes}
    sandbox.connect(network, sandboxes)
    started: list[processes.Process] = []

    def launch(where: str, component: str, argv: list[str]) -> None:
        name = component if where == CONTROL_PLANE else f"{where}/{component}"
        started.append(sandbox.start(layout, mark, sandboxes[where], name, argv))

    plan = components.control_plane(spec, layout, network)
    launch(CONTROL_PLANE, "etcd", plan["etcd"])
    launch(CONTROL_PLANE, "kube-apiserver", plan["kube-apiserver"])
    cluster = LocalCluster(layout, Record(spec, network, processes.boot_id()))
    # containerd takes its seconds too: both start side by side.
    nodes = {name: components.node(layout, network, name, at) for at, name in enumerate(spec.node_names, start=1)}
    for name, programs in nodes.items():
        launch(name, "containerd", programs["containerd"])
    for name in nodes:
        _wait(f"{name}: containerd", layout.containerd_socket(name).exists, started)
        _import(layout, name, pause.image())
    _wait("the API server", lambda: _ready(cluster), started, within_s=60)
    cluster.kubectl("apply", "-f", "-", input=configuration.coredns_access())
    for component in ("kube-controller-manager", "kube-scheduler", "coredns"):
        launch(CONTROL_PLANE, component, plan[component])
    for name, programs in nodes.items():
        launch(name, "kubelet", programs["kubelet"])
        launch(name, "kube-proxy", programs["kube-proxy"])
    _wait("all nodes", lambda: _nodes_ready(cluster, spec.nodes), started, within_s=60)
    _wait("the default ServiceAccount", lambda: _has_account(cluster), started)


def _write_configuration(spec: Spec, layout: Layout, network: Network) -> None:
    pki = layout.certificates
    pki.mkdir()
    authority = Authority(f"ebbtide-{spec.name}")
    authority.pair.write(pki, "ca")
    server = f"https://{network.control_plane}:{API_PORT}"
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = [network.control_plane, network.kubernetes_service]
    authority.issue("kube-apiserver", names=[*names, "localhost"], addresses=addresses).write(pki, "apiserver")
    admin = authority.issue("admin", ["system:masters"])
    admin.write(pki, "admin")
    private, public = signing_key()
    write_private(pki / "sa.key", private)
    (pki / "sa.pub").write_bytes(public)

    def access(user: str, *groups: str) -> str:
        return kubeconfig(spec.name, server, authority.pair.certificate, authority.issue(user, groups))

    write_private(layout.kubeconfig, kubeconfig(spec.name, server, authority.pair.certificate, admin).encode())
    etc = layout.configuration(CONTROL_PLANE)
    etc.mkdir(parents=True)
    files = {
        "kube-controller-manager.kubeconfig": access("system:kube-controller-manager"),
        "kube-scheduler.kubeconfig": access("system:kube-scheduler"),
        "coredns.kubeconfig": access("system:coredns"),
        "Corefile": configuration.corefile(network, str(etc / "coredns.kubeconfig")),
        "audit.yaml": configuration.audit_policy(),
    }
    for name, text in files.items():
        write_private(etc / name, text.encode())
    for index, node in enumerate(spec.node_names, start=1):
        etc = layout.configuration(node)
        etc.mkdir(parents=True)
        files = {
            "containerd.toml": configuration.containerd("overlayfs", components.runc(), components.CNI_PROGRAMS),
            "kubelet.yaml": configuration.kubelet(network, node, str(pki / "ca.crt")),
            "kubelet.kubeconfig": access(f"system:node:{node}", "system:nodes"),
            "kube-proxy.yaml": configuration.kube_proxy(network, node, str(etc / "kube-proxy.kubeconfig")),
            "kube-proxy.kubeconfig": access("system:kube-proxy"),
        }
        for name, text in files.items():
            write_private(etc / name, text.encode())
        network_folder = layout.sandbox(node) / "cni" / "net.d"
        network_folder.mkdir(parents=True)
        (network_folder / "10-ebbtide.conflist").write_text(configuration.cni(network, index))
        run = layout.sandbox(node) / "run"
        run.mkdir()
        (run / "resolv.conf").write_text(configuration.resolv_conf(network))


@contextmanager
def _slot(layout: Layout, spec: Spec) -> Iterator[Network]:
    """Claim a range of addresses that no other cluster has, and write it down."""
    with (state_root() / ".slots").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken = {
            record.network.slot
            for entry in state_root().iterdir()
            if entry != layout.root and (record := read_record(Layout(entry))) is not None
        }
        free = [at for at in range(SLOTS) if at not in taken and not _device_exists(Network(at).device)]
        if not free:
            raise ClusterError(f"{SLOTS} clusters are there already; take one down first")
        network = Network(free[0])
        write_record(layout, spec, network.slot, processes.boot_id())
    yield network


def _mark(layout: Layout) -> str:
    return str(layout.root)


def _device_exists(device: str) -> bool:
    return Path("/sys/class/net", device).exists()


def _import(layout: Layout, node: str, archive: Path) -> None:
    command = [str(binaries.path("ctr")), "--address", str(layout.containerd_socket(node)), "--namespace", "k8s.io"]
    done = subprocess.run(
        [*command, "images", "import", "--all-platforms", str(archive)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"loading {archive.name} into {node} failed: {done.stderr.strip()}")


def _ready(cluster: LocalCluster) -> bool:
    return cluster.kubectl("get", "--raw", "/readyz", check=False, timeout_s=10).returncode == 0


def _nodes_ready(cluster: LocalCluster, wanted: int) -> bool:
    answer = cluster.kubectl("get", "nodes", "-o", "json", check=False)
    if answer.returncode:
        return False
    conditions = [
        condition
        for node in json.loads(answer.stdout)["items"]
        for condition in node["status"].get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    ]
    return len(conditions) == wanted


def _has_account(cluster: LocalCluster) -> bool:
    return cluster.kubectl("get", "serviceaccount", "default", check=False).returncode == 0


def _wait(what: str, condition: Callable[[], bool], started: list[processes.Process], *, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        broken = processes.failures(started)
        if broken:
            raise ClusterError(broken)
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not ready within {within_s:.0f} s")
        time.sleep(0.1)


def _gone(what: str, condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} is still there after {within_s:.0f} s")
        time.sleep(0.05)
