from pathlib import Path

import pytest

from tests.localcluster import components
from tests.localcluster.components import Component
from tests.localcluster.layout import CONTROL_PLANE, Layout, Network, Spec

LAYOUT = Layout(Path("/state/a"))
NETWORK = Network(0)


def _rates(qps: float | None) -> list[str]:
    manager = components.controller_manager(LAYOUT, Spec("a", controller_manager_qps=qps))
    return [argument for argument in manager.arguments if "kube-api" in argument]


def test_the_controllers_keep_their_own_rate_unless_told() -> None:
    assert _rates(None) == []


@pytest.mark.parametrize(("qps", "burst"), [(100, 150), (20, 30), (0.5, 1)])
def test_the_burst_follows_the_rate(qps: float, burst: int) -> None:
    assert _rates(qps) == [f"--kube-api-qps={qps:g}", f"--kube-api-burst={burst}"]


def test_the_store_listens_only_inside_its_sandbox() -> None:
    urls = [argument for argument in components.etcd(LAYOUT).arguments if "-urls=" in argument]
    assert urls
    assert all("//127.0.0.1:" in url for url in urls)


def test_the_api_server_advertises_an_address_that_pods_reach() -> None:
    assert "--advertise-address=10.224.1.1" in components.api_server(LAYOUT, NETWORK).arguments


def test_a_component_of_a_node_is_told_apart_by_it() -> None:
    kubelet = components.kubelet(LAYOUT, NETWORK, "node-2", 2)
    assert (kubelet.name, kubelet.program, kubelet.sandbox) == ("kubelet/node-2", "kubelet", "node-2")
    assert "--node-ip=10.224.1.12" in kubelet.arguments
    assert "--hostname-override=node-2" in kubelet.arguments


def test_a_request_names_program_sandbox_and_log() -> None:
    component = Component("kubelet/node-1", "node-1", ("--v=2",))
    request = components.request(component, LAYOUT, 42, {"PATH": "/bin"}, lambda program: Path("/cache") / program)
    assert request == {
        "action": "start",
        "sandbox": 42,
        "argv": ["/cache/kubelet", "--v=2"],
        "env": {"PATH": "/bin"},
        "log": "/state/a/logs/kubelet-node-1.log",
        "niceness": 0,
    }
    assert components.etcd(LAYOUT).sandbox == CONTROL_PLANE


def test_the_control_plane_goes_before_what_runs_on_the_nodes() -> None:
    request = components.request(components.etcd(LAYOUT), LAYOUT, 42, {}, lambda program: Path("/cache") / program)
    assert request["niceness"] == -10
