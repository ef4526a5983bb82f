"""The cluster itself: what runs on it is real, and nothing of it stays."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import localcluster
from tests.cluster import busybox
from tests.cluster.installation import eventually, fresh_namespace
from tests.localcluster import Cluster, processes, teardown
from tests.localcluster.layout import layout_of
from tests.localcluster.local import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

SERVE = 'mkdir -p /www; echo "$HOSTNAME" > /www/index.html; echo serving; exec httpd -f -p 8080 -h /www'


def _manifest(replicas: int) -> str:
    container = {
        "name": "web",
        "image": busybox.REFERENCE,
        "imagePullPolicy": "Never",
        "args": ["-c", SERVE],
        "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "token", "mountPath": "/token"}],
    }
    token = {"audience": "ebbtide", "path": "token", "expirationSeconds": 600}
    pod = {
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}}],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule",
                "nodeTaintsPolicy": "Honor",
                "labelSelector": {"matchLabels": {"app": "web"}},
            }
        ],
    }
    items = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


class Web:
    """A Deployment of web servers and its Service."""

    def __init__(self, cluster: Cluster, namespace: str, replicas: int = 2) -> None:
        self.cluster, self.namespace = cluster, namespace
        cluster.load_image(busybox.archive())
        self.kubectl("apply", "-f", "-", input=_manifest(replicas))
        self.kubectl("rollout", "status", "deployment/web", "--timeout=90s", timeout_s=100)

    def kubectl(self, *args: str, **options: Any) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *args, **options).stdout

    def pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", "pods", "-l", "app=web", "-o", "json"))["items"]
        return found

    def run(self, script: str, pod: int = 0) -> str:
        return self.kubectl("exec", self.pods()[pod]["metadata"]["name"], "--", "sh", "-c", script)

    def service(self) -> str:
        return self.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Iterator[Web]:
    """Two web servers for all tests: to delete a namespace takes ten seconds."""
    with fresh_namespace(cluster, f"web-{os.getpid()}") as namespace:
        yield Web(cluster, namespace)


@pytest.fixture
def on_this_machine(cluster: Cluster) -> LocalCluster:
    if not isinstance(cluster, LocalCluster):
        pytest.skip("needs the local cluster: its processes are this machine's")
    return cluster


def _get(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode().splitlines()[-1]


def test_a_pod_finds_a_service_by_its_name_and_reaches_every_pod_of_it(web: Web) -> None:
    name = f"web.{web.namespace}.svc.cluster.local"
    assert web.service() in web.run(f"nslookup {name}")
    names = {pod["metadata"]["name"] for pod in web.pods()}
    call = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {web.service()} 80"
    answers: set[str] = set()

    def all_answered() -> bool:
        answers.add(web.run(call).splitlines()[-1])
        return answers == names

    eventually("every pod answered, the caller itself too", all_answered, every_s=0)


def test_a_name_that_is_not_there_is_answered_at_once(web: Web) -> None:
    assert "NXDOMAIN" in web.run(f"nslookup nobody.{web.namespace}.svc.cluster.local || true")


@pytest.mark.usefixtures("on_this_machine")
def test_a_name_outside_of_the_cluster_is_answered_without_asking_anybody(web: Web) -> None:
    assert "NXDOMAIN" in web.run("nslookup nobody.example || true")


def test_programs_of_this_machine_reach_pods_and_services(web: Web) -> None:
    if not web.cluster.service_reachable_from_host:
        pytest.skip("this kind of cluster is reached by its API only")
    names = {pod["metadata"]["name"] for pod in web.pods()}
    assert _get(web.service(), 80) in names
    assert {_get(pod["status"]["podIP"], 8080) for pod in web.pods()} == names


def test_a_pod_reaches_the_api_server_and_has_a_token_bound_to_it(web: Web) -> None:
    pod = web.pods()[0]
    token = web.run("cat /token/token")
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["aud"] == ["ebbtide"]
    assert claims["kubernetes.io"]["pod"]["uid"] == pod["metadata"]["uid"]
    assert web.run("nc -w 5 kubernetes.default.svc.cluster.local 443 < /dev/null && echo reached").strip() == "reached"


def test_exec_and_logs_work(web: Web) -> None:
    assert web.run("echo said inside").strip() == "said inside"
    name = web.pods()[0]["metadata"]["name"]
    assert web.kubectl("logs", name).strip() == "serving"


def test_a_failed_command_tells_what_was_said(cluster: Cluster) -> None:
    with pytest.raises(localcluster.ClusterError, match='doesn\'t have a resource type "nothing"'):
        cluster.kubectl("get", "nothing")
    assert cluster.kubectl("get", "nothing", check=False).returncode == 1


def test_helm_sees_the_cluster_and_keeps_its_files_out_of_the_home_folder(cluster: Cluster) -> None:
    assert json.loads(cluster.helm("list", "--all-namespaces", "--output", "json").stdout) is not None
    assert str(cluster.kubeconfig.parent) in cluster.helm("env", "HELM_CACHE_HOME").stdout


def test_every_write_is_audited_once_and_no_read_is(web: Web) -> None:
    lines = [json.loads(line) for line in web.cluster.audit_log.read_text().splitlines()]
    ours = [line for line in lines if line.get("objectRef", {}).get("namespace") == web.namespace]
    created = [line for line in ours if line["verb"] == "create" and line["objectRef"]["resource"] == "pods"]
    pods = [line for line in created if "subresource" not in line["objectRef"]]
    assert {line["user"]["username"] for line in pods} == {"system:serviceaccount:kube-system:replicaset-controller"}
    assert len(pods) >= 2
    assert len({line["auditID"] for line in lines}) == len(lines)
    assert {line["verb"] for line in lines}.isdisjoint({"get", "list", "watch"})
    assert {line["level"] for line in lines} == {"Metadata"}


def test_an_image_is_loaded_again_only_when_it_changed(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    name = "docker.io/ebbtide/changing:test"

    def loads(entrypoint: str) -> int:
        capsys.readouterr()
        web.cluster.load_image(busybox.archive(name, entrypoint))
        return capsys.readouterr().err.count("done in")

    assert [loads("sleep"), loads("sleep"), loads("cat"), loads("cat"), loads("sleep")] == [1, 0, 1, 0, 1]


def test_the_process_of_a_container_is_found_on_this_machine(web: Web, on_this_machine: LocalCluster) -> None:
    status = web.pods()[0]["status"]["containerStatuses"][0]
    pid = on_this_machine.container_pid(status["containerID"])
    assert "httpd" in processes.command_line(pid)
    os.kill(pid, signal.SIGKILL)

    def restarts() -> int:
        count: int = web.pods()[0]["status"]["containerStatuses"][0]["restartCount"]
        return count

    eventually("the kubelet started it again", lambda: restarts() == 1)
    with pytest.raises(localcluster.ClusterError, match="no process of container"):
        on_this_machine.container_pid(status["containerID"])


@pytest.mark.parametrize("component", ["etcd", "kube-apiserver", "kube-controller-manager", "containerd/node-1"])
def test_a_component_is_killed_and_comes_back(web: Web, on_this_machine: LocalCluster, component: str) -> None:
    before = on_this_machine.pids[component]
    os.kill(before, signal.SIGKILL)
    eventually("its end is seen", lambda: component not in on_this_machine.pids)
    assert f"{component} does not run" in on_this_machine.status().problems
    assert on_this_machine.restart(component) == on_this_machine.pids[component] != before
    eventually("the cluster is healthy", lambda: on_this_machine.status().healthy, within_s=90)
    web.kubectl("rollout", "restart", "deployment/web")
    web.kubectl("rollout", "status", "deployment/web", "--timeout=90s", timeout_s=100)


@pytest.fixture(scope="module")
def second_name(cluster: Cluster) -> Iterator[str]:
    name = f"{cluster.name[:20]}-second"
    yield name
    localcluster.down(name)
    assert teardown.leftovers(layout_of(name)) == []


@pytest.fixture
def second(on_this_machine: LocalCluster, second_name: str) -> LocalCluster:
    """Another cluster beside the run's own, with two nodes; a healthy one that a test left is used again."""
    running = localcluster.up(second_name, nodes=2)
    assert isinstance(running, LocalCluster)
    return running


def test_two_clusters_live_side_by_side_and_pods_of_two_nodes_meet(web: Web, second: LocalCluster) -> None:
    other = Web(second, "default", replicas=4)
    assert {pod["spec"]["nodeName"] for pod in other.pods()} == {"node-1", "node-2"}
    for pod in range(4):
        for target in other.pods():
            answer = other.run(f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {target['status']['podIP']} 8080", pod)
            assert answer.splitlines()[-1] == target["metadata"]["name"]
    assert _get(other.service(), 80) in {pod["metadata"]["name"] for pod in other.pods()}
    second.down()
    assert web.cluster.status().healthy
    assert _get(web.service(), 80) in {pod["metadata"]["name"] for pod in web.pods()}


def test_a_node_is_drained_and_its_pods_run_on_the_other(second: LocalCluster) -> None:
    web = Web(second, "default")
    second.kubectl("drain", "node-2", "--ignore-daemonsets", "--timeout=60s", timeout_s=70)
    eventually("no pod is on node-2", lambda: {pod["spec"].get("nodeName") for pod in web.pods()} == {"node-1"})
    second.kubectl("uncordon", "node-2")


def test_a_healthy_cluster_is_reused_and_another_specification_refused(second: LocalCluster) -> None:
    before = second.pids
    again = localcluster.up(second.name, nodes=2)
    assert isinstance(again, LocalCluster)
    assert again.pids == before
    with pytest.raises(localcluster.ClusterError, match="take it down first"):
        localcluster.up(second.name, nodes=1)
    assert second.pids == before


def test_nothing_is_left_after_a_crash(second: LocalCluster) -> None:
    """A frozen container, a stopped kubelet, a killed sandbox, and a state folder deleted by hand."""
    web = Web(second, "default", replicas=4)
    layout = layout_of(second.name)
    container = second.container_pid(web.pods()[0]["status"]["containerStatuses"][0]["containerID"])
    _freeze(container)
    os.kill(second.pids["kubelet/node-1"], signal.SIGSTOP)
    os.kill(second.pids["sandbox/node-2"], signal.SIGKILL)
    shutil.rmtree(layout.root, ignore_errors=True)
    assert teardown.leftovers(layout)
    localcluster.down(second.name)
    assert teardown.leftovers(layout) == []
    assert processes.start_time(container) is None


def test_a_cluster_with_dead_parts_is_replaced(second: LocalCluster) -> None:
    os.kill(second.pids["sandbox/control-plane"], signal.SIGKILL)
    eventually("its end is seen", lambda: not second.status().healthy)
    again = localcluster.up(second.name, nodes=2)
    assert again.status().healthy


def _freeze(pid: int) -> None:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "freezer":
            Path(f"/sys/fs/cgroup/freezer{path}/freezer.state").write_text("FROZEN")
        elif not controllers and Path(f"/sys/fs/cgroup{path}/cgroup.freeze").exists():
            Path(f"/sys/fs/cgroup{path}/cgroup.freeze").write_text("1")
