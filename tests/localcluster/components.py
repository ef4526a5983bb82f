"""The command line of each component."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.localcluster import binaries
from tests.localcluster.layout import API_PORT, CONTROL_PLANE, Layout, Network, Spec

CNI_PROGRAMS = "/usr/lib/cni"
PACKAGES = (
    "runc",
    "containernetworking-plugins",
    "iptables",
    "conntrack",
    "ipset",
    "socat",
    "ethtool",
    "iproute2",
    "gcc",
    "libc6-dev",
)


def control_plane(spec: Spec, layout: Layout, network: Network) -> Mapping[str, list[str]]:
    """Return what runs in the control plane, in the order in which it can start."""
    pki, etc = layout.certificates, layout.configuration(CONTROL_PLANE)
    etcd_url = "http://127.0.0.1:2379"
    manager_rate = []
    if spec.controller_manager_qps is not None:
        qps = spec.controller_manager_qps
        manager_rate = [f"--kube-api-qps={qps:g}", f"--kube-api-burst={max(1, round(qps * 1.5))}"]
    return {
        "etcd": [
            _program("etcd"),
            f"--data-dir={layout.sandbox(CONTROL_PLANE) / 'etcd'}",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            # The cluster is thrown away: what a crash of the machine would lose is lost anyway.
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            _program("kube-apiserver"),
            f"--etcd-servers={etcd_url}",
            f"--secure-port={API_PORT}",
            f"--bind-address={network.control_plane}",
            f"--advertise-address={network.control_plane}",
            "--endpoint-reconciler-type=lease",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'admin.crt'}",
            f"--kubelet-client-key={pki / 'admin.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--service-cluster-ip-range={network.services}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--enable-aggregator-routing=true",
            f"--audit-policy-file={etc / 'audit.yaml'}",
            f"--audit-log-path={layout.audit_log}",
            "--audit-log-maxsize=2000",
        ],
        "kube-controller-manager": [
            _program("kube-controller-manager"),
            f"--kubeconfig={etc / 'kube-controller-manager.kubeconfig'}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            "--leader-elect=false",
            "--secure-port=0",
            f"--cluster-cidr={network.pods}",
            "--allocate-node-cidrs=false",
            *manager_rate,
        ],
        "kube-scheduler": [
            _program("kube-scheduler"),
            f"--kubeconfig={etc / 'kube-scheduler.kubeconfig'}",
            "--leader-elect=false",
            "--secure-port=0",
        ],
        "coredns": [_program("coredns"), "-conf", str(etc / "Corefile")],
    }


def node(layout: Layout, network: Network, name: str, index: int) -> Mapping[str, list[str]]:
    """Return what runs on a node, in the order in which it can start."""
    etc = layout.configuration(name)
    return {
        "containerd": [_program("containerd"), "--config", str(etc / "containerd.toml")],
        "kubelet": [
            _program("kubelet"),
            f"--config={etc / 'kubelet.yaml'}",
            f"--kubeconfig={etc / 'kubelet.kubeconfig'}",
            f"--hostname-override={name}",
            f"--node-ip={network.node(index)}",
            "--root-dir=/var/lib/kubelet",
            "--cert-dir=/var/lib/kubelet/pki",
        ],
        "kube-proxy": [_program("kube-proxy"), f"--config={etc / 'kube-proxy.yaml'}"],
    }


def runc() -> str:
    """Return where runc is."""
    return shutil.which("runc") or "/usr/sbin/runc"


def search_path() -> str:
    """Return the PATH of components: containerd finds its shim there, kubelet and kube-proxy their tools."""
    return f"{binaries.path('containerd').parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _program(name: str) -> str:
    return str(Path(binaries.path(name)))
