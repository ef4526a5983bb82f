"""The programs of the cluster with their flags, in the order in which they start."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.layout import API_PORT, CONTROL_PLANE, Layout, Network, Spec

ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class Component:
    """One process of the cluster.

    Attributes:
        name: the program, and for those that each node has: `program/node`.
        sandbox: where it runs: the control plane or a node.
    """

    name: str
    sandbox: str
    arguments: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.name.partition("/")[0]


def etcd(layout: Layout) -> Component:
    """Return the store of the API server; it listens where only the control plane can reach it."""
    return Component(
        "etcd",
        CONTROL_PLANE,
        (
            f"--data-dir={layout.sandbox(CONTROL_PLANE) / 'etcd'}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=warn",
            # A test cluster survives the end of its processes, not of its machine.
            "--unsafe-no-fsync",
        ),
    )


def api_server(layout: Layout, network: Network) -> Component:
    pki = layout.certificates
    return Component(
        "kube-apiserver",
        CONTROL_PLANE,
        (
            "--etcd-servers=http://127.0.0.1:2379",
            f"--secure-port={API_PORT}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={network.control_plane}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={pki / 'service-account.pub'}",
            f"--service-account-signing-key-file={pki / 'service-account.key'}",
            f"--service-cluster-ip-range={network.services}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            # The control plane has no kube-proxy: webhooks are called at their pods' addresses.
            "--enable-aggregator-routing=true",
            f"--audit-policy-file={layout.configuration(CONTROL_PLANE) / 'audit-policy.yaml'}",
            f"--audit-log-path={layout.audit_log}",
            "--audit-log-maxsize=4000",  # MB; a rotated log would lose its reader
            "--profiling=false",
        ),
    )


def controller_manager(layout: Layout, spec: Spec) -> Component:
    pki = layout.certificates
    rate: tuple[str, ...] = ()
    if spec.controller_manager_qps is not None:
        qps = spec.controller_manager_qps
        rate = (f"--kube-api-qps={qps:g}", f"--kube-api-burst={max(1, round(qps * 1.5))}")
    return Component(
        "kube-controller-manager",
        CONTROL_PLANE,
        (
            f"--kubeconfig={layout.configuration(CONTROL_PLANE) / 'controller-manager.kubeconfig'}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki / 'service-account.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            "--leader-elect=false",
            "--secure-port=0",
            *rate,
        ),
    )


def scheduler(layout: Layout) -> Component:
    return Component(
        "kube-scheduler",
        CONTROL_PLANE,
        (
            f"--kubeconfig={layout.configuration(CONTROL_PLANE) / 'scheduler.kubeconfig'}",
            "--leader-elect=false",
            "--secure-port=0",
        ),
    )


def coredns(layout: Layout) -> Component:
    return Component("coredns", CONTROL_PLANE, ("-conf", str(layout.configuration(CONTROL_PLANE) / "Corefile")))


def containerd(layout: Layout, node: str) -> Component:
    return Component(f"containerd/{node}", node, ("--config", str(layout.configuration(node) / "containerd.toml")))


def kubelet(layout: Layout, network: Network, node: str, index: int) -> Component:
    folder = layout.configuration(node)
    return Component(
        f"kubelet/{node}",
        node,
        (
            f"--config={folder / 'kubelet.yaml'}",
            f"--kubeconfig={folder / 'kubelet.kubeconfig'}",
            f"--hostname-override={node}",
            f"--node-ip={network.node(index)}",
            "--cert-dir=/var/lib/kubelet/pki",
        ),
    )


def kube_proxy(layout: Layout, node: str) -> Component:
    return Component(f"kube-proxy/{node}", node, (f"--config={layout.configuration(node) / 'kube-proxy.yaml'}",))


def request(
    component: Component,
    layout: Layout,
    sandbox_pid: int,
    environment: dict[str, str],
    path_of: Callable[[str], Path],
) -> dict[str, object]:
    """Render what the launcher needs to start a component."""
    return {
        "action": "start",
        "sandbox": sandbox_pid,
        "argv": [str(path_of(component.program)), *component.arguments],
        "env": environment,
        "log": str(layout.logs / f"{component.name.replace('/', '-')}.log"),
        # A control plane has a machine of its own elsewhere; here it must not wait for the pods that are started.
        "niceness": -10 if component.sandbox == CONTROL_PLANE else 0,
    }
