"""Sandboxes: namespaces that hold a node (or the control plane), so that its end takes everything of it along."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.localcluster import components, configuration, pause, processes
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import CONTROL_PLANE, Layout, Network

# What the kubelet writes on its start is the whole machine's: it gets copies.
_COVERED = (
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
)
_NODE_FOLDERS = {
    "/run": "run",
    "/var/lib/containerd": "containerd",
    "/var/lib/kubelet": "kubelet",
    "/var/lib/cni": "cni",
    "/var/log/pods": "pods",
    "/var/log/containers": "containers",
}


def create(layout: Layout, mark: str, name: str) -> processes.Process:
    """Start the first process of a sandbox; with it end all processes, mounts, addresses and rules inside."""
    folder = layout.sandbox(name)
    binds = {"/run": "run"} if name == CONTROL_PLANE else _NODE_FOLDERS
    for target, part in binds.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        # A folder that is mounted over has to be there, on a fresh machine too.
        Path(target).mkdir(parents=True, exist_ok=True)
    covers = folder / "covers"
    covers.mkdir(exist_ok=True)
    request = {
        "action": "create",
        "argv": [str(pause.program())],
        "env": environment(mark),
        "log": str(layout.logs / f"{name}.log"),
        "keep": [str(layout.root)],
        "binds": {target: str(folder / part) for target, part in binds.items()},
        "covers": {} if name == CONTROL_PLANE else {path: str(covers / Path(path).name) for path in _COVERED},
        "sysctls": {"/proc/sys/net/ipv4/ip_forward": "1"},
        "hostname": name,
    }
    return processes.launch(name, request, layout.processes)


def start(
    layout: Layout, mark: str, sandbox: processes.Process, component: str, argv: Sequence[str]
) -> processes.Process:
    """Start a component in a sandbox; `component` is `node-1/kubelet`, or a name alone in the control plane."""
    request = {
        "action": "start",
        "sandbox": sandbox.pid,
        "argv": list(argv),
        "env": environment(mark),
        "log": str(layout.logs / f"{component.replace('/', '-')}.log"),
    }
    return processes.launch(component, request, layout.processes)


def connect(network: Network, sandboxes: dict[str, processes.Process]) -> None:
    """Wire the sandboxes up with each other and with this host.

    Raises:
        ClusterError: `ip` refused a command.
    """
    pids = {name: process.pid for name, process in sandboxes.items()}
    for pid, commands in configuration.link_commands(network, pids):
        enter = [] if pid is None else ["nsenter", "--target", str(pid), "--net"]
        done = subprocess.run(
            [*enter, "ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(f"setting up the network failed: {done.stderr.strip()}")


def environment(mark: str) -> dict[str, str]:
    """Return the environment of every process of a cluster."""
    return {"PATH": components.search_path(), processes.MARK: mark, "HOME": "/root"}
