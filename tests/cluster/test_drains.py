"""What a user sees: rollouts, rollbacks, scale-downs and mistakes on a managed Deployment."""

import json

import pytest

from tests.cluster.installation import eventually
from tests.cluster.workloads import MANAGED, Deployment, annotation

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_rollout_finishes_every_task_before_its_pod_goes(worker: Deployment) -> None:
    worker.apply(3, tasks=2, seconds="8")
    worker.wait_ready(3)
    worker.follow()
    old = worker.names()
    eventually("tasks run", lambda: all(len(log.said("started")) == 2 for log in worker.logs.values()))
    worker.change("2")
    eventually("the old pods are gone", lambda: not old & worker.names(), within_s=120)
    for log in worker.logs.values():
        log.end()
        assert log.said("finished") == {"first0", "first1"}
    assert [drain["outcome"] for drain in worker.last_drains(3)] == ["clean"] * 3


def test_only_surplus_pods_are_ever_told_to_drain(worker: Deployment) -> None:
    worker.apply(4, tasks=1, seconds="6", annotations=MANAGED | {"ebbtide.dev/max-draining": "100%"})
    worker.wait_ready(4)
    before = worker.metric("ebbtide_orders_total", desired="drain")
    old = worker.names()
    worker.scale(2)
    eventually("two pods are left", lambda: len(worker.names()) == 2, within_s=60)
    assert len(old & worker.names()) == 2
    after = worker.metric("ebbtide_orders_total", desired="drain")
    assert after - before == 2
    assert not worker.draining()


def test_a_rollout_of_twelve_orders_each_old_pod_once_and_no_other(worker: Deployment) -> None:
    worker.apply(12, tasks=1, seconds="3")
    worker.wait_ready(12)
    old = worker.names()
    drains = ("ebbtide_orders_total", "ebbtide_drains_total")
    ordered, ended = (worker.metric(name) for name in drains)
    worker.change("2")
    eventually("the old pods are gone", lambda: not old & worker.names(), within_s=180)
    eventually(
        "each end is recorded",
        lambda: worker.metric("ebbtide_drains_total") - ended >= 12,
    )
    assert worker.metric("ebbtide_orders_total") - ordered == 12
    assert {record["pod"] for record in worker.last_drains()} <= old


def test_the_idlest_pods_are_chosen(worker: Deployment) -> None:
    worker.apply(4)
    worker.wait_ready(4)
    worker.follow()
    pods = sorted(worker.names())
    for pod in pods[:2]:
        worker.give(pod, "long", "forever")
    worker.scale(2)
    eventually("two pods are left", lambda: worker.names() == set(pods[:2]), within_s=60)


def test_never_more_pods_drain_at_once_than_the_budget(worker: Deployment) -> None:
    worker.apply(5, tasks=1, seconds="4", annotations=MANAGED | {"ebbtide.dev/max-draining": "1"})
    worker.wait_ready(5)
    worker.scale(1)
    most = 0

    def done() -> bool:
        nonlocal most
        pods = worker.pods()
        draining = [
            pod
            for pod in pods
            if annotation(pod, "draining-since")
            and not annotation(pod, "released")
            and "deletionTimestamp" not in pod["metadata"]
        ]
        most = max(most, len(draining))
        return len(pods) == 1

    eventually("one pod is left", done, within_s=120, every_s=0.1)
    assert most == 1


def test_a_rollback_returns_draining_pods_to_service(worker: Deployment) -> None:
    worker.apply(3, strategy={"maxSurge": 1, "maxUnavailable": 0})
    worker.wait_ready(3)
    worker.follow()
    old = worker.names()
    for pod in old:
        worker.give(pod, "long", "forever")
    worker.change("2")
    draining = eventually("a pod drains", worker.draining)
    assert draining <= old
    worker.kubectl("rollout", "undo", f"deployment/{worker.name}")
    eventually("nothing drains", lambda: not worker.draining())
    eventually("the three first pods serve", lambda: worker.names() == old, within_s=60)
    worker.wait_ready(3)
    for pod in old:
        worker.give(pod, "after", "0.1")
        log = worker.logs[pod]
        eventually(f"{pod} works again", lambda log=log: "after" in log.said("finished"))  # type: ignore[misc]


def test_a_scale_up_returns_draining_pods_to_service(worker: Deployment) -> None:
    worker.apply(3)
    worker.wait_ready(3)
    worker.follow()
    old = worker.names()
    for pod in old:
        worker.give(pod, "long", "forever")
    worker.scale(1)
    eventually("pods drain", worker.draining)
    worker.scale(3)
    eventually("nothing drains", lambda: not worker.draining())
    worker.wait_ready(3)
    assert worker.names() == old


def test_endless_tasks_are_cancelled_at_the_drain_timeout_and_recorded(worker: Deployment) -> None:
    short = MANAGED | {"ebbtide.dev/drain-timeout": "4s", "ebbtide.dev/cancel-grace": "3s"}
    worker.apply(2, annotations=short)
    worker.wait_ready(2)
    worker.follow()
    for pod in worker.names():
        worker.give(pod, "endless", "forever")
    old = worker.names()
    worker.scale(1)
    eventually("one pod is left", lambda: len(worker.names()) == 1, within_s=30)
    (gone,) = old - worker.names()
    worker.logs[gone].end()
    assert worker.logs[gone].said("cancelled") == {"endless"}
    last, *_ = worker.last_drains()
    assert (last["pod"], last["outcome"]) == (gone, "cancelled")


def test_a_task_that_ignores_its_cancel_is_abandoned_at_the_deadline(worker: Deployment) -> None:
    short = MANAGED | {"ebbtide.dev/drain-timeout": "3s", "ebbtide.dev/cancel-grace": "2s"}
    worker.apply(2, annotations=short)
    worker.wait_ready(2)
    worker.follow()
    old = worker.names()
    for pod in old:
        worker.give(pod, "deaf", "stubborn")
    worker.scale(1)
    eventually("one pod is left", lambda: len(worker.names()) == 1, within_s=45)
    last, *_ = worker.last_drains()
    assert last["outcome"] == "abandoned"
    assert last["tasksLost"] == 1


def test_a_nonsense_annotation_is_named_and_the_rollout_runs(worker: Deployment) -> None:
    worker.apply(2, annotations=MANAGED | {"ebbtide.dev/drain-timeout": "soon"})
    worker.wait_ready(2)
    worker.change("2")
    worker.kubectl("rollout", "status", f"deployment/{worker.name}", "--timeout=60s", timeout_s=70)
    messages = eventually(
        "an Event names it", lambda: worker.installation.events(worker.namespace, "InvalidAnnotation")
    )
    assert "ebbtide.dev/drain-timeout" in messages[0]
    assert "soon" in messages[0]
    assert worker.metric("ebbtide_invalid_annotations", annotation="ebbtide.dev/drain-timeout")
    status = worker.installation.drain(worker.namespace, worker.name)
    ready = next(condition for condition in status["conditions"] if condition["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InvalidAnnotation")
    template = worker.pods()[0]["spec"]["containers"][0]
    assert "lifecycle" not in template


def test_a_persons_delete_is_not_held(worker: Deployment) -> None:
    worker.apply(1, tasks=1, seconds="3")
    worker.wait_ready(1)
    worker.follow()
    (pod,) = worker.names()
    worker.kubectl("delete", "pod", pod, "--wait=true", "--timeout=60s", timeout_s=70)
    worker.logs[pod].end()
    assert worker.logs[pod].said("finished") == {"first0"}, "the floor lets the task end"


def test_a_pod_that_is_deleted_before_it_hears_signals_leaves_once_it_does(worker: Deployment) -> None:
    worker.apply(1, start_after_s=5)
    (pod,) = eventually("its container runs", worker.running)
    # Neither preStop nor SIGTERM reaches a process that has not begun to listen; its grace period is 75 s.
    worker.kubectl("delete", "pod", pod, "--wait=true", "--timeout=30s", timeout_s=40)


def test_a_forced_delete_is_not_held(worker: Deployment) -> None:
    worker.apply(1, tasks=1, seconds="forever")
    worker.wait_ready(1)
    (pod,) = worker.names()
    worker.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=true", "--timeout=30s", timeout_s=40)
    eventually("the pod is gone", lambda: pod not in worker.names())


def test_pods_from_before_the_annotation_are_named_and_not_held(worker: Deployment) -> None:
    worker.apply(2, tasks=1, seconds="forever", annotations={"note": "not managed yet"})
    worker.wait_ready(2)
    worker.kubectl("annotate", "deployment", worker.name, *(f"{key}={text}" for key, text in MANAGED.items()))
    eventually(
        "both carry the label",
        lambda: all(pod["metadata"].get("labels", {}).get("ebbtide.dev/managed") == "true" for pod in worker.pods()),
    )

    def unprotected() -> str:
        conditions = worker.installation.drain(worker.namespace, worker.name).get("conditions", [])
        return next((one["status"] for one in conditions if one["type"] == "Unprotected"), "")

    eventually("the Drain says so", lambda: unprotected() == "True")
    worker.kubectl("rollout", "restart", f"deployment/{worker.name}")
    eventually("all pods have the floor", lambda: unprotected() == "False", within_s=120)
    worker.scale(1)
    eventually("one is held", worker.draining)
    assert len([pod for pod in worker.pods() if annotation(pod, "floor")]) == 2


def test_taking_the_annotation_away_lets_everything_go(worker: Deployment) -> None:
    worker.apply(2, tasks=1, seconds="30")
    worker.wait_ready(2)
    worker.scale(1)
    eventually("one drains", worker.draining)
    worker.kubectl("annotate", "deployment", worker.name, "ebbtide.dev/drain-")
    eventually("one pod is left", lambda: len(worker.names()) == 1, within_s=75)
    pod = worker.pods()[0]
    assert "ebbtide.dev/managed" not in pod["metadata"].get("labels", {})
    assert not annotation(pod, "draining-since")


def test_get_drains_shows_who_drains_and_until_when(worker: Deployment) -> None:
    worker.apply(2, tasks=2, seconds="forever")
    worker.wait_ready(2)
    worker.scale(1)

    def shown() -> bool:
        status = worker.installation.drain(worker.namespace, worker.name)
        return bool(status.get("draining") == 1 and status.get("tasksLeft") == 2 and status.get("deadline"))

    eventually("the Drain tells", shown)
    table = worker.kubectl("get", "drains").stdout.splitlines()
    assert table[0].split()[0] == "NAME"
    assert "ScalingDown" in table[1]
    print(json.dumps(worker.installation.drain(worker.namespace, worker.name), indent=1))
