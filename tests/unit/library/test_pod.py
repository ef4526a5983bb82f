"""Runtimes of one pod, in one process: what being alone costs, and what one does for the other."""

import asyncio
import os
import signal
import threading
import uuid

import pytest

import ebbtide
from ebbtide.lifecycle.machine import Durations, Source, Tick
from ebbtide.protocol import Desired, Order, PodState
from ebbtide.settings import Workers
from ebbtide.workers.due import Due
from tests.unit.library.runtimes import until


def a_worker(pod: str, workers: Workers = Workers.AUTO) -> ebbtide.Runtime:
    settings = ebbtide.Settings(pod_uid=pod, admin_port=0, durations=Durations(0, 30, 5), workers=workers)
    return ebbtide.Runtime(settings, watchdog=False)


def a_short_order() -> Order:
    """Return one whose deadline comes soon after the pod is drained."""
    return Order(desired=Desired.DRAIN, generation=1, epoch=1, drain_timeout_s=1.1, cancel_grace_s=0)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("ebbtide")}


async def test_a_process_that_is_alone_has_no_thread_more() -> None:
    async with a_worker(uuid.uuid4().hex, Workers.SINGLE):
        expected = threads()
    async with a_worker(uuid.uuid4().hex):
        assert threads() == expected


async def test_one_leads_and_the_other_takes_over_when_it_leaves() -> None:
    pod = uuid.uuid4().hex
    first, second = a_worker(pod), a_worker(pod)
    async with first:
        await second.__aenter__()
        assert first.admin_port is not None
        assert second.admin_port is None
    await until(lambda: second.admin_port is not None)
    assert second.state is PodState.SERVING, "the other one left alone"
    await second.__aexit__(None, None, None)


class Told:
    """An agent that is there `since`, and takes note of the final report."""

    connected = True

    def __init__(self, since: threading.Event) -> None:
        self._since = since
        self.finished = False

    def made(self) -> "Told":
        assert self._since.wait(10)
        return self

    def edge(self) -> None:
        pass

    def retire(self, timeout_s: float) -> bool:
        return True

    def finish(self) -> bool:
        self.finished = True
        return True


async def test_a_worker_that_leaves_while_it_takes_over_gives_the_final_report(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = uuid.uuid4().hex
    first, second = a_worker(pod), a_worker(pod)
    monkeypatch.setattr(ebbtide.Settings, "has_store", True)
    at_once = threading.Event()
    at_once.set()
    before, after = Told(at_once), Told(second._pod._leaving)
    monkeypatch.setattr(first._pod, "_start_agent", before.made)
    monkeypatch.setattr(second._pod, "_start_agent", after.made)
    async with first:
        await second.__aenter__()
    await until(lambda: second._pod._hub is not None)
    await second.__aexit__(None, None, None)
    assert after.finished
    assert not before.finished, "the other one stayed"


async def test_a_worker_that_comes_while_the_pod_drains_takes_no_work() -> None:
    pod = uuid.uuid4().hex
    async with a_worker(pod) as first, a_worker(pod):
        first._pod._view.request_drain(Source.API, "by hand", leave=False)
        async with a_worker(pod) as late:
            assert late.draining
            assert not late.ready
            assert first._pod._view.request_undrain()
            await until(lambda: late.state is PodState.SERVING)


async def test_workers_that_are_single_know_nothing_of_each_other() -> None:
    pod = uuid.uuid4().hex
    async with a_worker(pod, Workers.SINGLE) as first, a_worker(pod, Workers.SINGLE) as second:
        assert first.admin_port != second.admin_port
        assert second.admin_port is not None


async def test_a_pod_that_nobody_collects_ends_its_parent_also_where_a_person_drained_it_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda pid, number: ended.append((pid, number)))
    pod = uuid.uuid4().hex
    async with a_worker(pod) as first, a_worker(pod) as second:
        assert first._pod._hub is not None
        first._pod._view.request_drain(Source.API, "by hand", leave=False)
        first._pod._hub.order(a_short_order())
        async with asyncio.timeout(10):
            await first.wait_exit()
            await second.wait_exit()
    assert ended == [(os.getppid(), signal.SIGTERM)]


async def test_a_worker_waits_for_the_others_also_after_a_drain_that_nobody_could_take_back() -> None:
    pod = uuid.uuid4().hex
    async with a_worker(pod) as first, a_worker(pod) as second:
        busy, done = asyncio.Event(), asyncio.Event()
        first.scope("work").spawn(busy.wait())
        second.scope("work").spawn(done.wait())
        first._pod._view.request_drain(Source.PRESTOP, "", leave=True)
        await until(lambda: second.draining)
        assert not await asyncio.to_thread(first._pod._view.request_undrain)
        done.set()
        await until(lambda: second.state is PodState.EXITING)
        # After what that step does, and not before the loop has heard of it.
        await asyncio.to_thread(second._conductor.call, Tick())
        assert not second._effects.exit_due.is_set(), "whoever started it would start another one"
        busy.set()
        async with asyncio.timeout(10):
            await second.wait_exit()


async def test_a_start_that_is_cancelled_while_it_waits_for_the_leader_leaves_nothing_behind() -> None:
    runtime = a_worker(uuid.uuid4().hex)
    assert runtime._pod._place is not None
    leader = runtime._pod._place.claim()
    assert leader is not None
    before, handler = threads(), signal.getsignal(signal.SIGTERM)
    entering = asyncio.create_task(runtime.__aenter__())
    await until(lambda: runtime._pod._link is not None)
    entering.cancel("enough")
    await until(lambda: runtime._pod._leaving.is_set() or entering.done())
    # One that never answered, and is gone now: there is nobody to say goodbye to.
    leader.close()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert signal.getsignal(signal.SIGTERM) is handler
    await until(lambda: threads() <= before)


async def test_a_pod_whose_parent_may_not_be_ended_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(pid: int, number: int) -> None:
        # As for workers without rights under a master of root: gunicorn's --user.
        assert (pid, number) == (os.getppid(), signal.SIGTERM)
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.kill", forbidden)
    pod = uuid.uuid4().hex
    async with a_worker(pod) as first, a_worker(pod) as second:
        assert first._pod._hub is not None
        first._pod._hub.order(a_short_order())
        async with asyncio.timeout(10):
            await first.wait_exit()
            await second.wait_exit()
    assert f"cannot end process {os.getppid()} (Operation not permitted)" in caplog.text


def test_what_is_due_is_done_once_whatever_fails_before_it(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("no")

    due = Due()
    for at, action in ((1.0, fail), (1.0, lambda: done.append("due")), (2.0, lambda: done.append("later"))):
        due.add(at, action)
    due.carry_out(1.0)
    due.carry_out(1.0)
    assert done == ["due"]
    assert due.next_at() == 2.0
    due.carry_out(float("inf"))
    assert done == ["due", "later"]
    assert caplog.text.count("OSError: no") == 1
