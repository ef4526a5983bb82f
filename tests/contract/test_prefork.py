"""Several real processes, one pod: forked by hand, by gunicorn and by uvicorn."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebbtide import environment
from ebbtide.protocol import Desired, PodState
from tests.contract.member import Member
from tests.contract.prefork import Pod
from tests.contract.prefork_celery import an_app
from tests.contract.watching import SyncWatching, wait_until

pytestmark = pytest.mark.etcd

FORK = ("-m", "tests.contract.prefork_apps")
GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--graceful-timeout", "20")
SERVERS = {
    "gunicorn-asgi": (*GUNICORN, "-k", "asgi", "tests.contract.prefork_apps:asgi"),
    "gunicorn-asgi-preload": (*GUNICORN, "--preload", "-k", "asgi", "tests.contract.prefork_apps:asgi"),
    "gunicorn-gthread": (*GUNICORN, "-c", "tests/contract/prefork_gunicorn.py", "tests.contract.prefork_apps:wsgi"),
    "uvicorn": ("-m", "uvicorn", "--port", "0", "--workers", "2", "tests.contract.prefork_apps:asgi"),
    "hypercorn": ("-m", "hypercorn", "--bind", "127.0.0.1:0", "--workers", "2", "tests.contract.prefork_apps:asgi"),
    "granian": (
        "-m",
        "granian",
        "--port",
        "0",
        "--interface",
        "asgi",
        "--workers",
        "2",
        "tests.contract.prefork_apps:asgi",
    ),
    "fork": (*FORK, "2"),
}

PodOf = Callable[..., Pod]


@pytest.fixture
def pod_of(shared_etcd: Member, tmp_path: Path) -> Iterator[PodOf]:
    pods: list[Pod] = []

    def make(*command: str, **settings: str) -> Pod:
        pods.append(Pod(shared_etcd, tmp_path, *command, **settings))
        return pods[-1]

    yield make
    for pod in pods:
        # Shown where a test fails.
        print(f"status {pod.process.poll()}\n{pod.log.read_text()}")
        pod.close()


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_a_pod_drains_as_one_and_serves_again_as_one(pod_of: PodOf, command: tuple[str, ...]) -> None:
    pod = pod_of(*command)
    one, other = pod.wait_for_workers(2)
    pod.wait_for(PodState.SERVING)
    pod.start_task(one)
    pod.start_task(other)
    first = pod.order()
    pod.wait_for(PodState.DRAINING, generation=first, active=2)
    pod.end_tasks(one)
    wait_until(lambda: pod.states() == {one: "Drained", other: "Draining"})
    assert pod.ask("GET", "/readyz") == (503, "Draining\n")
    pod.start_task(one)
    assert pod.refused(one)
    pod.end_tasks(other)
    drained = pod.wait_for(PodState.DRAINED, generation=first, active=0)
    assert drained.tally == {"finished": 2, "refused": 1}
    assert drained.drain is not None
    assert (drained.drain["outcome"], drained.drain["counts"]) == ("clean", {"finished": 2})
    again = pod.order(Desired.SERVE)
    pod.wait_for(PodState.SERVING, generation=again)
    assert pod.states() == {one: "Serving", other: "Serving"}
    assert pod.ask("GET", "/readyz") == (200, "Serving\n")
    assert pod.pids() == {one, other}
    assert pod.boots == 1
    pod.process.send_signal(signal.SIGTERM)
    pod.process.wait(20)
    pod.wait_for(PodState.EXITING)


def test_celery_children_drain_with_their_parent_and_lose_no_task(pod_of: PodOf, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    queue.mkdir()
    app = an_app(queue)
    pod = pod_of("-m", "celery", "-A", "tests.contract.prefork_celery", "worker", "--concurrency=2", "--loglevel=INFO")
    pids = pod.wait_for_workers(3)
    children = pids - {pod.process.pid}
    wait_until(lambda: len(pod.states()) == 3)
    for name in ("one", "two"):
        app.send_task("wait_for_file", [name])
    wait_until(lambda: {int(path.stem) for path in tmp_path.glob("*.busy")} == children)
    pod.order()
    pod.wait_for(PodState.DRAINING, active=2)
    wait_until((tmp_path / "closed").exists)
    app.send_task("wait_for_file", ["three"])
    (tmp_path / "one").touch()
    wait_until(lambda: sorted(pod.states().values()) == ["Drained", "Drained", "Draining"])
    (tmp_path / "two").touch()
    pod.wait_for(PodState.DRAINED, active=0)
    (tmp_path / "three").touch()
    pod.order(Desired.SERVE)
    pod.wait_for(PodState.SERVING)
    wait_until(lambda: pod.view()["tally"].get("finished") == 3)
    pod.process.send_signal(signal.SIGTERM)
    assert pod.process.wait(30) == 0
    pod.wait_for(PodState.EXITING)


def test_a_worker_that_is_killed_holds_no_drain_and_its_tasks_are_counted_once(pod_of: PodOf) -> None:
    pod = pod_of(*FORK, "3")
    pids = pod.wait_for_workers(3)
    wait_until(lambda: len(pod.states()) == 3)
    killed, *rest = sorted(pids, key=lambda pid: pid == pod.leader())
    for pid in pids:
        pod.start_task(pid)
    pod.order()
    pod.wait_for(PodState.DRAINING, active=3)
    os.kill(killed, signal.SIGKILL)
    pod.wait_for(PodState.DRAINING, active=2, tally={"abandoned": 1})
    # The one that was forked in its place drains with the others, and has nothing to do.
    (new,) = pod.wait_for_new_workers(pids)
    wait_until(lambda: pod.states().get(new) == "Drained")
    pod.start_task(new)
    assert pod.refused(new)
    for pid in rest:
        pod.end_tasks(pid)
    assert pod.wait_for(PodState.DRAINED, active=0).tally == {"abandoned": 1, "finished": 2, "refused": 1}


@pytest.fixture
def watching(shared_etcd: Member) -> Iterator[Callable[[str], SyncWatching]]:
    opened: list[SyncWatching] = []

    def watch(key: str) -> SyncWatching:
        opened.append(SyncWatching([shared_etcd.url], key))
        return opened[-1]

    yield watch
    for each in opened:
        each.stop()


def test_no_death_of_a_leader_makes_a_pod_drained_that_works(
    pod_of: PodOf, watching: Callable[[str], SyncWatching]
) -> None:
    pod = pod_of(*FORK, "3")
    pids = pod.wait_for_workers(3)
    wait_until(lambda: len(pod.states()) == 3)
    busy = max(pids - {pod.leader()})
    pod.start_task(busy)
    pod.order(drain_timeout_s=300)
    pod.wait_for(PodState.DRAINING, active=1)
    told = watching(pod.report_key)
    for _ in range(3):
        wait_until(lambda: len(pod.states()) == 3)
        leader = pod.leader()
        if leader == busy:
            break
        # All that is left are one that works and, at times, one that was forked in the same moment.
        os.kill(leader, signal.SIGKILL)
        pod.wait_for_new_workers(pids)
        pids = pod.pids()
    assert set(pod.states_told(told)) == {PodState.DRAINING}
    pod.end_tasks(busy)
    assert pod.wait_for(PodState.DRAINED).tally == {"finished": 1}
    assert pod.boots == 1


def test_when_the_worker_that_leads_is_killed_another_takes_over(pod_of: PodOf) -> None:
    pod = pod_of(*FORK, "3")
    pids = pod.wait_for_workers(3)
    wait_until(lambda: len(pod.states()) == 3)
    for pid in pids:
        pod.start_task(pid)
    generation = pod.order(drain_timeout_s=300)
    before = pod.wait_for(PodState.DRAINING, active=3)
    left_s = pod.view()["deadline_in_s"]
    leader = pod.leader()
    os.kill(leader, signal.SIGKILL)
    after = pod.wait_for(PodState.DRAINING, active=2, generation=generation, tally={"abandoned": 1})
    assert after.boot_id == before.boot_id
    assert after.sequence > before.sequence
    wait_until(lambda: len(pod.states()) == 3)
    assert pod.leader() in pids - {leader}, "one that knows the pod, and not the one that was forked just now"
    assert pod.view()["deadline_in_s"] <= left_s, "the drain goes on, and does not begin again"
    for pid in pids - {leader}:
        pod.end_tasks(pid)
    assert pod.wait_for(PodState.DRAINED, active=0).tally == {"abandoned": 1, "finished": 2}
    pod.order(Desired.SERVE)
    pod.wait_for(PodState.SERVING)
    assert pod.boots == 1


@pytest.mark.parametrize("which", ["leader", "other"])
def test_a_worker_that_is_recycled_takes_its_time_and_the_pod_serves_on(pod_of: PodOf, which: str) -> None:
    pod = pod_of(*FORK, "2")
    pids = pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    leader = pod.leader()
    recycled = leader if which == "leader" else next(iter(pids - {leader}))
    pod.start_task(recycled)
    os.kill(recycled, signal.SIGTERM)
    wait_until(lambda: pod.states().get(recycled) == "Draining")
    assert pod.ask("GET", "/readyz") == (200, "Serving\n")
    pod.end_tasks(recycled)
    (new,) = pod.wait_for_new_workers(pids)
    wait_until(lambda: set(pod.states()) == pids - {recycled} | {new})
    report = pod.wait_for(PodState.SERVING)
    pod.order()
    assert pod.wait_for(PodState.DRAINED).tally == {"finished": 1}
    assert report.boot_id == pod.wait_for(PodState.DRAINED).boot_id


def test_prestop_waits_for_all_workers(pod_of: PodOf) -> None:
    pod = pod_of(*FORK, "2")
    pids = pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    (busy,) = pids - {pod.leader()}
    pod.start_task(busy)
    answers: list[tuple[int, str]] = []
    hook = threading.Thread(target=lambda: answers.append(pod.ask("GET", "/drain?start=prestop&wait=30", 40)))
    hook.start()
    # The leader has nothing to do, and stays to answer.
    wait_until(lambda: pod.states() == {pod.leader(): "Exiting", busy: "Draining"})
    assert not answers
    pod.end_tasks(busy)
    hook.join(30)
    assert [status for status, _ in answers] == [200]
    assert '"finished": 1' in answers[0][1]


def test_a_drained_pod_that_nobody_collects_ends_with_its_master(pod_of: PodOf) -> None:
    pod = pod_of(*FORK, "2")
    pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    pod.order(leave=True)
    assert pod.process.wait(20) == 0
    pod.wait_for(PodState.EXITING)


@pytest.mark.parametrize("command", [SERVERS["uvicorn"], SERVERS["fork"]], ids=["uvicorn", "fork"])
def test_a_drained_pod_that_is_deleted_ends_at_once(pod_of: PodOf, command: tuple[str, ...]) -> None:
    pod = pod_of(*command)
    pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    pod.order(drain_timeout_s=300)
    pod.wait_for(PodState.DRAINED)
    asked_at = time.monotonic()
    pod.process.send_signal(signal.SIGTERM)
    pod.process.wait(20)
    assert time.monotonic() - asked_at < 10
    pod.wait_for(PodState.EXITING)


def test_a_person_drains_a_pod_and_takes_that_back(pod_of: PodOf) -> None:
    pod = pod_of(*FORK, "2")
    pids = pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    pod.order(drain_timeout_s=300)
    pod.wait_for(PodState.DRAINED)
    assert pod.ask("POST", "/drain")[0] == 202
    assert pod.ask("DELETE", "/drain")[0] == 200
    wait_until(lambda: pod.states() == dict.fromkeys(pids, "Serving"))
    os.kill(next(iter(pids - {pod.leader()})), signal.SIGTERM)
    # The order to drain still stands, but it was taken back: nobody waits for its deadline, and who is new serves.
    (new,) = pod.wait_for_new_workers(pids)
    wait_until(lambda: pod.states() == {pod.leader(): "Serving", new: "Serving"})


def test_workers_that_cancelled_tasks_are_replaced_when_the_pod_serves_again(pod_of: PodOf) -> None:
    pod = pod_of(*FORK, "2")
    one, other = pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    pod.start_task(one)
    pod.order(drain_timeout_s=0.2)
    assert pod.wait_for(PodState.DRAINED, forced=True).tally == {"cancelled": 1}
    pod.order(Desired.SERVE)
    pod.wait_for(PodState.SERVING, forced=False)
    pids = {other} | pod.wait_for_new_workers({one, other})
    wait_until(lambda: pod.states() == dict.fromkeys(pids, "Serving"))


def test_workers_meet_at_a_path_where_they_are_told_to(pod_of: PodOf, tmp_path: Path) -> None:
    path = tmp_path / "workers.sock"
    pod = pod_of(*FORK, "2", **{environment.WORKERS_SOCKET: str(path)})
    pids = pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    assert path.stat().st_mode & 0o777 == 0o600
    os.kill(pod.leader(), signal.SIGKILL)
    pod.wait_for_new_workers(pids)
    wait_until(lambda: len(pod.states()) == 2)
    pod.order()
    pod.wait_for(PodState.DRAINED)


def test_a_frozen_worker_delays_no_report_and_is_counted_once_when_it_comes_back(pod_of: PodOf) -> None:
    pod = pod_of(*FORK, "2")
    pids = pod.wait_for_workers(2)
    wait_until(lambda: len(pod.states()) == 2)
    (frozen,) = pids - {pod.leader()}
    pod.start_task(frozen)
    os.kill(frozen, signal.SIGSTOP)
    asked_at = time.monotonic()
    generation = pod.order()
    wait_until(lambda: "Drained" in pod.states().values())
    assert time.monotonic() - asked_at < 5
    report = pod.report
    assert report is not None
    assert report.state is not PodState.DRAINED
    os.kill(frozen, signal.SIGCONT)
    pod.end_tasks(frozen)
    assert pod.wait_for(PodState.DRAINED, generation=generation).tally == {"finished": 1}
