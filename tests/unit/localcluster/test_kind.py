from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.localcluster import adapters, kind
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import Spec

KIND = Path("/bin/kind")


def test_a_cluster_is_created_with_an_access_file_of_its_own() -> None:
    assert kind.create_command(KIND, "a", Path("/state/a/kind-config.yaml"), Path("/state/a/kubeconfig")) == [
        *("/bin/kind", "create", "cluster", "--name", "a", "--config", "/state/a/kind-config.yaml"),
        *("--kubeconfig", "/state/a/kubeconfig", "--wait", "120s"),
    ]


def test_an_image_is_loaded_from_its_archive() -> None:
    assert kind.load_command(KIND, "a", Path("/tmp/i.tar")) == [
        *("/bin/kind", "load", "image-archive", "/tmp/i.tar", "--name", "a")
    ]


def test_deletion_and_lists_name_the_cluster() -> None:
    assert kind.delete_command(KIND, "a", Path("/k")) == [
        *("/bin/kind", "delete", "cluster", "--name", "a", "--kubeconfig", "/k")
    ]
    assert kind.nodes_command(KIND, "a") == ["/bin/kind", "get", "nodes", "--name", "a"]
    assert kind.clusters_command(KIND) == ["/bin/kind", "get", "clusters"]


def test_a_node_is_asked_for_the_images_that_kubernetes_sees() -> None:
    command = kind.list_images_command("a-worker")
    assert command[:3] == ["docker", "exec", "a-worker"]
    assert command[command.index("--namespace") + 1] == "k8s.io"


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_as_many_workers_as_nodes_were_asked_for(nodes: int) -> None:
    file: dict[str, Any] = yaml.safe_load(kind.CONFIGURATION.read_text())
    adapted = kind.configuration(file, Spec("a", nodes))
    assert [node["role"] for node in adapted["nodes"]] == ["control-plane", *["worker"] * nodes]
    assert adapted["name"] == "a"
    assert len({node["image"] for node in adapted["nodes"]}) == 1


def test_the_repository_pins_one_control_plane_and_two_workers_by_digest() -> None:
    nodes = yaml.safe_load(kind.CONFIGURATION.read_text())["nodes"]
    assert [node["role"] for node in nodes] == ["control-plane", "worker", "worker"]
    (image,) = {node["image"] for node in nodes}
    assert image.startswith("kindest/node:v1.36.")
    assert "@sha256:" in image


def test_what_only_the_local_cluster_can_do_is_refused() -> None:
    with pytest.raises(ClusterError, match="controller_manager_qps"):
        kind.up(Spec("a", controller_manager_qps=100))


@pytest.mark.parametrize(
    ("choice", "linux_root", "docker", "chosen"),
    [
        (None, True, True, "local"),
        (None, True, False, "local"),
        (None, False, True, "kind"),
        ("", False, True, "kind"),
        ("kind", True, False, "kind"),
        ("local", False, True, "local"),
    ],
)
def test_the_local_cluster_comes_first_unless_told(
    choice: str | None, linux_root: bool, docker: bool, chosen: str
) -> None:
    assert adapters.choose(choice, linux_root=linux_root, docker=docker) == chosen


def test_says_what_is_missing_where_no_cluster_can_run() -> None:
    with pytest.raises(ClusterError, match="root on Linux, or start a Docker engine"):
        adapters.choose(None, linux_root=False, docker=False)
    with pytest.raises(ClusterError, match="EBBTIDE_CLUSTER=minikube"):
        adapters.choose("minikube", linux_root=True, docker=True)
