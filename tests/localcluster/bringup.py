"""Starts a local cluster: certificates, files, sandboxes, network, processes, in that order."""

import functools
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.localcluster import (
    binaries,
    certificates,
    cgroups,
    components,
    configuration,
    network,
    packages,
    pause,
    processes,
    sandbox,
    slots,
)
from tests.localcluster.certificates import Authority
from tests.localcluster.cluster import CommandFailed, run
from tests.localcluster.components import Component
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import API_PORT, CONTROL_PLANE, Layout, Network, Spec
from tests.localcluster.processes import Process
from tests.localcluster.progress import step

T = TypeVar("T")
_OVERLAYFS = 0x794C7630  # f_type of statfs(2)


def bring_up(layout: Layout, spec: Spec) -> None:
    """Start everything of a cluster and wait until pods can be created.

    Raises:
        ClusterError: a part did not start; the message has the end of its log.
    """
    layout.root.mkdir(parents=True, mode=0o700)
    addresses = slots.claim(layout, spec)
    with step(f"starting the control plane and {spec.nodes} node{'s' * (spec.nodes > 1)}"):
        _write_files(layout, spec, addresses)
        cgroups.create(addresses.cgroup, spec.node_names)
        sandboxes = {name: sandbox.create(layout, name) for name in spec.sandboxes}
        network.connect(addresses, {name: process.pid for name, process in sandboxes.items()})
        started = [start(layout, components.containerd(layout, node)) for node in spec.node_names]
        started.append(start(layout, components.etcd(layout)))
        started.append(start(layout, components.api_server(layout, addresses)))
        wait_for("the API server to be ready", lambda: api_ready(layout, addresses), started)
    with step("waiting for the nodes"):
        _kubectl(layout, "apply", "--filename=-", input=configuration.coredns_access())
        started += [
            start(layout, component)
            for component in (
                components.controller_manager(layout, spec),
                components.scheduler(layout),
                components.coredns(layout),
            )
        ]
        for index, node in enumerate(spec.node_names, start=1):
            wait_for(f"containerd of {node}", functools.partial(_containerd_ready, layout, node), started)
            import_image(layout, node, pause.image())
            started.append(start(layout, components.kubelet(layout, addresses, node, index)))
            started.append(start(layout, components.kube_proxy(layout, node)))
        wait_for("the nodes to be ready", lambda: set(spec.node_names) <= ready_nodes(layout), started, every_s=0.3)
        wait_for("the first ServiceAccount", lambda: _namespace_ready(layout), started, every_s=0.3)


def start(layout: Layout, component: Component) -> Process:
    """Start a component in its sandbox."""
    home = sandbox.pids(layout)[component.sandbox]
    request = components.request(component, layout, home.pid, sandbox.environment(layout), binaries.path)
    return processes.launch(component.name, request, layout.processes)


def import_image(layout: Layout, node: str, archive: Path) -> None:
    """Load an image archive into a node."""
    run([*ctr(layout, node), "images", "import", str(archive)], timeout_s=300)


def ctr(layout: Layout, node: str) -> list[str]:
    """Return the command line of containerd's client for a node, up to its subcommand."""
    return [str(binaries.path("ctr")), "--address", str(layout.containerd_socket(node)), "--namespace", "k8s.io"]


def api_ready(layout: Layout, addresses: Network) -> bool:
    """Ask the API server whether it is ready."""
    trust = ssl.create_default_context(cafile=layout.certificates / "ca.crt")
    try:
        with urllib.request.urlopen(
            f"https://{addresses.control_plane}:{API_PORT}/readyz", timeout=5, context=trust
        ) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def ready_nodes(layout: Layout) -> set[str]:
    """Return the names of the nodes that are ready."""
    listed = _kubectl(layout, "get", "nodes", "--output=json")
    return {
        node["metadata"]["name"]
        for node in json.loads(listed)["items"]
        if any(entry["type"] == "Ready" and entry["status"] == "True" for entry in node["status"].get("conditions", ()))
    }


def wait_for(
    what: str,
    probe: Callable[[], T],
    started: Sequence[Process],
    *,
    within_s: float = 90,
    every_s: float = 0.1,
) -> T:
    """Wait for a condition; stop at once where a process that it needs has ended.

    Raises:
        ClusterError: a process has ended, or the time is over.
    """
    deadline = time.monotonic() + within_s
    while not (answer := probe()):
        if failed := processes.failures(started):
            raise ClusterError(f"while waiting for {what}: {failed}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"{process.log}:\n{processes.tail(process.log, 5)}" for process in started)
            raise ClusterError(f"waited {within_s:.0f} s for {what}, in vain; the ends of the logs:\n{logs}")
        time.sleep(every_s)
    return answer


def _kubectl(layout: Layout, *args: str, input: str | None = None) -> str:  # noqa: A002 - as in subprocess
    return run([str(binaries.path("kubectl")), "--kubeconfig", str(layout.kubeconfig), *args], input=input).stdout


def _containerd_ready(layout: Layout, node: str) -> bool:
    socket = layout.containerd_socket(node)
    return socket.exists() and run([*ctr(layout, node), "version"], check=False).returncode == 0


def _namespace_ready(layout: Layout) -> bool:
    """Tell whether pods can be created: they need the ServiceAccount, and the authority's certificate to start."""
    try:
        _kubectl(layout, "get", "serviceaccount/default", "configmap/kube-root-ca.crt")
    except CommandFailed:
        return False
    return True


def _write_files(layout: Layout, spec: Spec, addresses: Network) -> None:
    for name in spec.sandboxes:
        layout.configuration(name).mkdir(parents=True)
        (layout.sandbox(name) / "run").mkdir()
    authority = _write_certificates(layout, addresses)
    server = f"https://{addresses.control_plane}:{API_PORT}"

    def kubeconfig(target: Path, user: str, group: str | None = None) -> None:
        client = authority.issue(user, [group] if group else [])
        text = certificates.kubeconfig(f"ebbtide-{spec.name}", server, authority.pair.certificate, client)
        certificates.write_private(target, text.encode())

    kubeconfig(layout.kubeconfig, "ebbtide-admin", "system:masters")
    center = layout.configuration(CONTROL_PLANE)
    kubeconfig(center / "controller-manager.kubeconfig", "system:kube-controller-manager")
    kubeconfig(center / "scheduler.kubeconfig", "system:kube-scheduler")
    kubeconfig(center / "coredns.kubeconfig", "system:coredns")
    (center / "audit-policy.yaml").write_text(configuration.audit_policy())
    (center / "Corefile").write_text(configuration.corefile(addresses, str(center / "coredns.kubeconfig")))

    snapshotter = "native" if _on_overlay(layout.root) else "overlayfs"
    runtime = configuration.containerd(snapshotter, str(packages.program("runc")), str(packages.cni_folder()))
    for index, node in enumerate(spec.node_names, start=1):
        folder = layout.configuration(node)
        kubeconfig(folder / "kubelet.kubeconfig", f"system:node:{node}", "system:nodes")
        kubeconfig(folder / "kube-proxy.kubeconfig", "system:kube-proxy")
        (folder / "containerd.toml").write_text(runtime)
        (folder / "kubelet.yaml").write_text(
            configuration.kubelet(addresses, node, str(layout.certificates / "ca.crt"))
        )
        (folder / "kube-proxy.yaml").write_text(
            configuration.kube_proxy(addresses, node, str(folder / "kube-proxy.kubeconfig"))
        )
        networks = layout.sandbox(node) / "lib" / "cni" / "net.d"
        networks.mkdir(parents=True)
        (networks / "10-ebbtide.conflist").write_text(configuration.cni(addresses, index))
        (layout.sandbox(node) / "run" / "resolv.conf").write_text(configuration.resolv_conf(addresses))


def _write_certificates(layout: Layout, addresses: Network) -> Authority:
    folder = layout.certificates
    folder.mkdir(mode=0o700)
    authority = Authority("ebbtide local cluster")
    authority.pair.write(folder, "ca")
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
    authority.issue(
        "kube-apiserver",
        names=(*service, f"{service[-1]}.{configuration.DNS_DOMAIN}", "localhost"),
        addresses=(addresses.control_plane, addresses.uplink, addresses.kubernetes_service),
    ).write(folder, "apiserver")
    authority.issue("kube-apiserver-kubelet-client", ["system:masters"]).write(folder, "kubelet-client")
    private, public = certificates.signing_key()
    certificates.write_private(folder / "service-account.key", private)
    (folder / "service-account.pub").write_bytes(public)
    return authority


def _on_overlay(folder: Path) -> bool:
    """Tell whether a folder lies on an overlay (in a container): the kernel puts no second one on it."""
    kind = run(["stat", "--file-system", "--format=%t", str(folder)]).stdout.strip()
    return int(kind, 16) == _OVERLAYFS
