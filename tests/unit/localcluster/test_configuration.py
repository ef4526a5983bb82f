import json
import tomllib

import yaml

from tests.localcluster import configuration, network
from tests.localcluster.layout import CONTROL_PLANE, Network

NETWORK = Network(3)


def test_each_kubelet_keeps_to_its_own_control_groups() -> None:
    roots = {
        yaml.safe_load(configuration.kubelet(Network(slot), node, "/ca.crt"))["cgroupRoot"]
        for slot in (0, 1)
        for node in ("node-1", "node-2")
    }
    assert roots == {"/ebbtide-0/node-1", "/ebbtide-0/node-2", "/ebbtide-1/node-1", "/ebbtide-1/node-2"}


def test_a_kubelet_lets_nobody_in_without_a_name() -> None:
    kubelet = yaml.safe_load(configuration.kubelet(NETWORK, "node-1", "/ca.crt"))
    assert kubelet["authentication"]["anonymous"]["enabled"] is False
    assert kubelet["authorization"]["mode"] == "Webhook"


def test_pods_ask_the_name_server_of_their_cluster() -> None:
    kubelet = yaml.safe_load(configuration.kubelet(NETWORK, "node-1", "/ca.crt"))
    assert kubelet["clusterDNS"] == ["10.227.1.1"]
    assert "bind 10.227.1.1" in configuration.corefile(NETWORK, "/kubeconfig")


def test_the_runtime_pins_the_sandbox_image_and_leaves_oom_scores_alone() -> None:
    runtime = tomllib.loads(configuration.containerd("native", "/usr/sbin/runc", "/opt/cni/bin"))
    images, cri = runtime["plugins"]["io.containerd.cri.v1.images"], runtime["plugins"]["io.containerd.cri.v1.runtime"]
    assert images["pinned_images"]["sandbox"] == configuration.PAUSE_IMAGE
    assert images["snapshotter"] == "native"
    assert cri["restrict_oom_score_adj"] is True
    assert cri["cni"]["bin_dirs"] == ["/opt/cni/bin"]


def test_pods_of_different_nodes_get_different_addresses() -> None:
    def subnet(index: int) -> str:
        plugin = json.loads(configuration.cni(NETWORK, index))["plugins"][0]
        return str(plugin["ipam"]["ranges"][0][0]["subnet"])

    assert [subnet(1), subnet(2)] == ["10.227.128.0/22", "10.227.132.0/22"]


def test_reads_are_not_audited_and_writes_are_once() -> None:
    policy = yaml.safe_load(configuration.audit_policy())
    assert policy["omitStages"] == ["RequestReceived"]
    assert policy["rules"] == [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]


def test_the_proxy_leaves_settings_of_the_machine_alone() -> None:
    proxy = yaml.safe_load(configuration.kube_proxy(NETWORK, "node-1", "/kubeconfig"))
    assert proxy["conntrack"]["maxPerCore"] == 0
    assert proxy["clusterCIDR"] == "10.227.128.0/17"


def test_the_host_gets_one_device_and_one_route() -> None:
    batches = network.commands(NETWORK, {CONTROL_PLANE: 10, "node-1": 11, "node-2": 12})
    host = [command for namespace, batch in batches if namespace is None for command in batch]
    assert [command for command in host if command.startswith("route")] == ["route add 10.227.0.0/16 via 10.227.0.2"]
    assert [command.split()[2] for command in host if command.startswith("link add")] == [NETWORK.device]


def test_every_node_reaches_the_pods_of_every_other() -> None:
    batches = dict(network.commands(NETWORK, {CONTROL_PLANE: 10, "node-1": 11, "node-2": 12, "node-3": 13}))
    for pid, index in ((11, 1), (12, 2), (13, 3)):
        routes = {command for command in batches[pid] if command.startswith("route add 10")}
        assert routes == {
            f"route add {NETWORK.pods_of(other)} via {NETWORK.node(other)}" for other in (1, 2, 3) if other != index
        }


def test_a_device_is_moved_into_a_node_before_the_node_names_it() -> None:
    order = [namespace for namespace, _ in network.commands(NETWORK, {CONTROL_PLANE: 10, "node-1": 11, "node-2": 12})]
    assert order == [None, 10, 11, 12, None]
