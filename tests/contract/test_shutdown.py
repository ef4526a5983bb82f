"""A drain takes no longer for a store that is gone, whatever way it went."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ebbtide.etcd import EtcdClient
from ebbtide.lifecycle.machine import Durations
from ebbtide.protocol import Keys, PodState, Report
from ebbtide.runtime import Runtime
from ebbtide.settings import Settings, Workers
from tests.contract.faults import until
from tests.contract.member import Member, free_port
from tests.contract.proxy import Proxy

pytestmark = pytest.mark.etcd
TASK_S = 0.3


async def drain(url: str = "", *, connected: bool = False, harm: Callable[[], None] = lambda: None) -> float:
    """Return how many seconds a process takes from its drain order to its end, with a task that takes `TASK_S`."""
    settings = Settings(
        pod_name="orders-1",
        pod_namespace="shop",
        pod_uid="uid-1",
        workload="deployment/orders",
        endpoints=(url,) if url else (),
        durations=Durations(quiesce_s=0.0, drain_timeout_s=30.0, cancel_grace_s=5.0),
        admin_port=0,
        workers=Workers.SINGLE,
    )
    async with Runtime(settings, watchdog=False) as runtime:
        await until(lambda: runtime.ready and (runtime._pod.store_connected or not connected))
        harm()
        runtime.scope("orders").spawn(asyncio.sleep(TASK_S))
        begun_at = time.monotonic()
        runtime.drain("test")
        await runtime.wait_exit()
    return time.monotonic() - begun_at


@pytest.fixture
def mute() -> Iterator[str]:
    """Take connections, and say nothing."""
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))

        def take() -> None:
            while True:
                connection, _ = listener.accept()
                held.enter_context(connection)
                if ending.is_set():
                    return

        ending = threading.Event()
        thread = threading.Thread(target=take)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ending.set()
        # Wakes who waits in accept.
        held.enter_context(socket.create_connection(listener.getsockname()))
        thread.join()


@pytest.fixture
def swallowing() -> Iterator[str]:
    """Answer no attempt to connect: the queue of those that wait to be accepted is full."""
    with ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_store_that_takes_connections_and_says_nothing_delays_no_drain(mute: str) -> None:
    assert await drain(mute) < TASK_S + 1


async def test_a_store_that_answers_no_attempt_to_connect_delays_no_drain(swallowing: str) -> None:
    assert await drain(swallowing) < TASK_S + 1


async def test_a_store_that_is_not_there_delays_no_drain() -> None:
    assert await drain(f"http://127.0.0.1:{free_port()}") < TASK_S + 1


async def test_a_store_that_froze_delays_no_drain(etcd: Member) -> None:
    assert await drain(etcd.url, connected=True, harm=etcd.freeze) < TASK_S + 1


async def test_a_way_to_the_store_that_swallows_everything_delays_no_drain(etcd: Member) -> None:
    proxy = Proxy(etcd.port)

    def swallow() -> None:
        proxy.silent = True

    try:
        assert await drain(proxy.url, connected=True, harm=swallow) < TASK_S + 1
    finally:
        await asyncio.to_thread(proxy.close)


async def test_the_final_report_of_a_store_that_is_there_is_waited_for(etcd: Member) -> None:
    assert await drain(etcd.url, connected=True) < TASK_S + 1
    with EtcdClient([etcd.url]) as client:
        found = client.get(Keys().report("shop", "uid-1"))
    assert found is not None
    assert found.lease == 0
    assert Report.decode(found.value).state is PodState.EXITING
