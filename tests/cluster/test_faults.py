"""What happens when parts of Ebbtide die: nothing is held past its deadline, and tasks end by the floor."""

import time

import pytest

from tests.cluster.installation import NAMESPACE, RELEASE, Installation, eventually, install
from tests.cluster.workloads import MANAGED, Deployment, annotation, seconds_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]


@pytest.fixture
def mended(installation: Installation) -> object:
    """Bring the operator and its store back after a test that takes them away."""
    yield
    kubectl = installation.cluster.kubectl
    kubectl("-n", NAMESPACE, "scale", f"statefulset/{RELEASE}-etcd", "--replicas=1")
    kubectl("-n", NAMESPACE, "scale", f"deployment/{RELEASE}", "--replicas=2")
    eventually("Ebbtide serves again", installation.ready, within_s=120)


def kill_containers(installation: Installation, component: str) -> int:
    """SIGKILL the main process of every container of a component; return how many there were."""
    killed = 0
    for pod in installation.items("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}"):
        for status in pod["status"].get("containerStatuses", []):
            installation.cluster.kill_container(status["containerID"])
            killed += 1
    return killed


def force_down(installation: Installation, resource: str, component: str) -> None:
    """Take a component away for good, without a graceful end."""
    kubectl = installation.cluster.kubectl
    kubectl("-n", NAMESPACE, "scale", resource, "--replicas=0")
    selector = f"app.kubernetes.io/component={component}"
    kubectl("-n", NAMESPACE, "delete", "pods", "-l", selector, "--grace-period=0", "--force", "--wait=false")
    eventually(f"no {component} is left", lambda: not installation.items("pods", "-n", NAMESPACE, "-l", selector))


def begin_rollout(worker: Deployment) -> set[str]:
    """Start a rollout of pods that work, wait until one of them drains, and return the names of the old ones."""
    old = worker.names()
    worker.change("2")
    eventually("a pod drains", worker.draining)
    return old


def make_busy(worker: Deployment, replicas: int, *, task_s: str, drain_timeout: str) -> None:
    """Run pods with one task each, which outlasts the beginning of a rollout."""
    short = {"ebbtide.dev/drain-timeout": drain_timeout, "ebbtide.dev/cancel-grace": "5s"}
    worker.apply(replicas, annotations=MANAGED | short)
    worker.wait_ready(replicas)
    worker.follow()
    for pod in worker.names():
        worker.give(pod, "long", task_s)


def wait_gone(worker: Deployment, old: set[str], *, within_s: float = 180) -> None:
    """Wait until the old pods are gone."""
    eventually("the rollout completes", lambda: not old & worker.names(), within_s=within_s)


def assert_all_finished(worker: Deployment, task: str) -> None:
    """Check that each pod that was followed finished its task before it went."""
    for log in worker.logs.values():
        log.end()
        assert log.said("finished") == {task}


def test_killed_operators_go_on_from_what_they_find(worker: Deployment) -> None:
    worker.apply(4, tasks=1, seconds="12")
    worker.wait_ready(4)
    worker.follow()
    old = begin_rollout(worker)
    assert kill_containers(worker.installation, "operator") == 2
    wait_gone(worker, old)
    assert_all_finished(worker, "first0")
    eventually("two operators serve", worker.installation.ready, within_s=90)


@pytest.mark.usefixtures("mended")
def test_without_operators_every_pod_ends_by_its_own_deadline(worker: Deployment) -> None:
    make_busy(worker, 4, task_s="15", drain_timeout="20s")
    old = begin_rollout(worker)
    deadlines = {
        pod["metadata"]["name"]: seconds_of(until)
        for pod in worker.pods()
        if (until := annotation(pod, "drain-deadline"))
    }
    force_down(worker.installation, f"deployment/{RELEASE}", "operator")
    ended: dict[str, float] = {}

    def gone() -> bool:
        there = {pod["metadata"]["name"] for pod in worker.pods() if "deletionTimestamp" not in pod["metadata"]}
        for pod in deadlines.keys() - there - ended.keys():
            ended[pod] = time.time()
        return not old & worker.names()

    eventually("the rollout completes", gone, within_s=180, every_s=0.1)
    for pod, deadline in deadlines.items():
        print(f"{pod}: deletion accepted {ended[pod] - deadline:+.2f} s from its deadline")
        assert ended[pod] <= deadline + 1.0
    assert_all_finished(worker, "long")


@pytest.mark.usefixtures("mended")
def test_without_etcd_the_rollout_completes_and_tasks_finish_by_the_floor(worker: Deployment) -> None:
    make_busy(worker, 4, task_s="15", drain_timeout="30s")
    old = begin_rollout(worker)
    force_down(worker.installation, f"statefulset/{RELEASE}-etcd", "etcd")
    wait_gone(worker, old)
    assert_all_finished(worker, "long")


def test_a_killed_etcd_comes_back_and_the_rollout_goes_on(worker: Deployment) -> None:
    worker.apply(3, tasks=1, seconds="10")
    worker.wait_ready(3)
    worker.follow()
    old = begin_rollout(worker)
    assert kill_containers(worker.installation, "etcd") == 1
    wait_gone(worker, old)
    assert_all_finished(worker, "first0")
    eventually("two operators serve", worker.installation.ready, within_s=90)


def test_deleting_a_namespace_in_mid_drain_is_not_blocked(installation: Installation) -> None:
    installation.cluster.kubectl("create", "namespace", "doomed")
    worker = Deployment(installation, "doomed")
    worker.apply(2, tasks=1, seconds="forever", annotations=MANAGED | {"ebbtide.dev/drain-timeout": "5s"})
    worker.wait_ready(2)
    worker.scale(1)
    eventually("one drains", worker.draining)
    installation.cluster.kubectl("delete", "namespace", "doomed", "--timeout=90s", timeout_s=100)


def test_uninstalling_in_mid_drain_is_not_blocked(worker: Deployment) -> None:
    installation = worker.installation
    make_busy(worker, 3, task_s="10", drain_timeout="20s")
    old = begin_rollout(worker)
    try:
        installation.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", timeout_s=120)
        wait_gone(worker, old, within_s=120)
        assert_all_finished(worker, "long")
    finally:
        install(installation.cluster)
    old = worker.names()
    worker.change("3")
    wait_gone(worker, old)
    assert all(annotation(pod, "floor") for pod in worker.pods()), "ready means that new pods get the floor"
