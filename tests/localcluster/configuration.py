"""The configuration files of the components, rendered; nothing here touches the machine."""

import json
from typing import Any

import yaml

from tests.localcluster.layout import Network

DNS_DOMAIN = "cluster.local"
PAUSE_IMAGE = "docker.io/ebbtide/pause:1"


def containerd(snapshotter: str, runc: str, cni_programs: str) -> str:
    """Render containerd's version 3 configuration; its paths are those inside the node."""
    return f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri"]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
# Machines that are containers themselves may not lower the scores: without this no sandbox starts there.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni_programs}"]
conf_dir = "/var/lib/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "{runc}"
"""


def cni(network: Network, index: int) -> str:
    """Render the pod network of a node.

    Each pod has a point-to-point link. On a bridge, the answer of a pod to a neighbour that called it by its Service
    would not pass the node's address translation.
    """
    return _json(
        {
            "cniVersion": "1.0.0",
            "name": "ebbtide",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/run/cni-addresses",
                        "ranges": [[{"subnet": str(network.pods_of(index))}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
    )


def kubelet(network: Network, node: str, client_ca: str) -> str:
    """Render the kubelet's configuration."""
    return _yaml(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": client_ca},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{network.cgroup}/{node}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "clusterDomain": DNS_DOMAIN,
            "clusterDNS": [str(network.control_plane)],
            "resolvConf": "/run/resolv.conf",
            "podLogsDir": "/var/log/pods",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "maxPods": 500,
            "registryPullQPS": 0,
            "serializeImagePulls": False,
            "imageGCHighThresholdPercent": 100,  # never collect: nothing could be pulled again
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # Defaults of 50/100 and 5/10 delay the events and status of a large rollout.
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            "eventRecordQPS": 0,
        }
    )


def kube_proxy(network: Network, node: str, kubeconfig: str) -> str:
    """Render kube-proxy's configuration; its tables live in the node's network namespace and end with it."""
    return _yaml(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": kubeconfig},
            "hostnameOverride": node,
            "mode": "iptables",
            "clusterCIDR": str(network.pods),
            "detectLocalMode": "ClusterCIDR",
            "iptables": {"localhostNodePorts": False, "minSyncPeriod": "100ms"},
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "metricsBindAddress": "127.0.0.1:10249",
        }
    )


def corefile(network: Network, kubeconfig: str) -> str:
    """Render CoreDNS's configuration: the cluster's names, and a quick "no such name" for all others."""
    # Two blocks: within one, the template would answer before the cluster's names are looked up.
    return f"""\
{DNS_DOMAIN}:53 in-addr.arpa:53 {{
    bind {network.control_plane}
    errors
    kubernetes {DNS_DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
}}
.:53 {{
    bind {network.control_plane}
    errors
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def resolv_conf(network: Network) -> str:
    """Render what pods with `dnsPolicy: Default` get."""
    return f"nameserver {network.control_plane}\n"


def audit_policy() -> str:
    """Render the policy that writes one line for each write that the API server answered."""
    return _yaml(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "verbs": ["get", "list", "watch"]},
                {"level": "Metadata"},
            ],
        }
    )


def coredns_access() -> str:
    """Render the rights of CoreDNS, which no built-in role covers."""
    role = "system:coredns"
    return _yaml(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}],
        },
    )


def _json(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"


def _yaml(*documents: Any) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False)
