from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.localcluster import adapters, kind
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import Layout, Spec

KIND = Path("/bin/kind")
LAYOUT = Layout(Path("/state/a"))


def adapt(spec: Spec, image: str | None = None) -> dict[str, Any]:
    return kind.configuration(yaml.safe_load(kind.CONFIGURATION.read_text()), spec, LAYOUT, image)


def test_a_cluster_is_created_with_an_access_file_of_its_own() -> None:
    assert kind.create_command(KIND, "a", Path("/state/a/kind-config.yaml"), Path("/state/a/kubeconfig")) == [
        *("/bin/kind", "create", "cluster", "--name", "a", "--config", "/state/a/kind-config.yaml"),
        *("--kubeconfig", "/state/a/kubeconfig", "--wait", "120s"),
    ]


def test_an_image_is_loaded_from_its_archive_into_the_nodes_that_take_pods() -> None:
    assert kind.load_command(KIND, "a", Path("/tmp/i.tar"), ["a-worker", "a-worker2"]) == [
        *("/bin/kind", "load", "image-archive", "/tmp/i.tar", "--name", "a", "--nodes", "a-worker,a-worker2")
    ]


def test_deletion_and_lists_name_the_cluster() -> None:
    assert kind.delete_command(KIND, "a", Path("/k")) == [
        *("/bin/kind", "delete", "cluster", "--name", "a", "--kubeconfig", "/k")
    ]
    assert kind.nodes_command(KIND, "a") == ["/bin/kind", "get", "nodes", "--name", "a"]
    assert kind.clusters_command(KIND) == ["/bin/kind", "get", "clusters"]


def test_a_node_is_asked_for_the_images_that_kubernetes_sees() -> None:
    assert kind.ctr_command("a-worker", "images", "list") == [
        *("docker", "exec", "a-worker", "ctr", "--namespace", "k8s.io", "images", "list")
    ]


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_as_many_workers_as_nodes_were_asked_for(nodes: int) -> None:
    adapted = adapt(Spec("a", nodes))
    assert [node["role"] for node in adapted["nodes"]] == ["control-plane", *["worker"] * nodes]
    assert adapted["name"] == "a"
    assert len({node["image"] for node in adapted["nodes"]}) == 1


@pytest.mark.parametrize("nothing", [None, ""])
def test_all_nodes_run_the_image_that_was_chosen_or_the_pinned_one(nothing: str | None) -> None:
    assert {node["image"] for node in adapt(Spec("a", 2), "my/node:v1.36.9")["nodes"]} == {"my/node:v1.36.9"}
    (pinned,) = {node["image"] for node in yaml.safe_load(kind.CONFIGURATION.read_text())["nodes"]}
    assert {node["image"] for node in adapt(Spec("a", 2), nothing)["nodes"]} == {pinned}


def test_the_api_server_writes_its_audit_log_into_the_state_folder() -> None:
    adapted = adapt(Spec("a"))
    mounts = {mount["containerPath"]: mount["hostPath"] for mount in adapted["nodes"][0]["extraMounts"]}
    assert "extraMounts" not in adapted["nodes"][1]
    (patch,) = map(yaml.safe_load, adapted["kubeadmConfigPatches"])
    volumes = {volume["mountPath"]: volume["hostPath"] for volume in patch["apiServer"]["extraVolumes"]}

    def on_this_machine(path: str) -> Path:
        """Follow a path from the API server's container to the node and on to this machine."""
        (inner,) = (mount for mount in volumes if Path(path).is_relative_to(mount))
        (outer,) = (mount for mount in mounts if Path(volumes[inner]).is_relative_to(mount))
        return Path(mounts[outer]) / Path(volumes[inner]).relative_to(outer) / Path(path).relative_to(inner)

    arguments = patch["apiServer"]["extraArgs"]
    assert on_this_machine(arguments["audit-log-path"]) == LAYOUT.audit_log
    assert on_this_machine(arguments["audit-policy-file"]) == Path("/state/a/control-plane/etc/audit-policy.yaml")


def test_mounts_and_patches_of_the_repositorys_configuration_stay() -> None:
    file: dict[str, Any] = yaml.safe_load(kind.CONFIGURATION.read_text())
    mount = {"hostPath": "/a", "containerPath": "/b"}
    file["nodes"][0]["extraMounts"] = [mount]
    file["kubeadmConfigPatches"] = ["kind: InitConfiguration"]
    adapted = kind.configuration(file, Spec("a"), LAYOUT)
    assert adapted["nodes"][0]["extraMounts"][0] == mount
    assert len(adapted["nodes"][0]["extraMounts"]) == 3
    assert adapted["kubeadmConfigPatches"][0] == "kind: InitConfiguration"
    assert len(adapted["kubeadmConfigPatches"]) == 2


def test_a_node_that_does_not_say_ready_is_named() -> None:
    def node(name: str, **conditions: str) -> dict[str, Any]:
        listed = [{"type": kind, "status": status} for kind, status in conditions.items()]
        return {"metadata": {"name": name}, "status": {"conditions": listed}}

    nodes = [node("a", Ready="True"), node("b", Ready="Unknown"), node("c", DiskPressure="True"), node("d")]
    assert kind.unready({"items": nodes}) == ["b", "c", "d"]


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
