"""Runtimes of one pod, in one process: what being alone costs, and what one does for the other."""

import threading
import uuid

import ebbtide
from ebbtide.lifecycle.machine import Durations, Source
from ebbtide.protocol import PodState
from ebbtide.settings import Workers
from tests.unit.library.runtimes import until


def a_worker(pod: str, workers: Workers = Workers.AUTO) -> ebbtide.Runtime:
    settings = ebbtide.Settings(pod_uid=pod, admin_port=0, durations=Durations(0, 30, 5), workers=workers)
    return ebbtide.Runtime(settings, watchdog=False)


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
