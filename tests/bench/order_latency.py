"""From an order in etcd to closed intake (goal G11): `python -m tests.bench.order_latency`, about 10 s.

A real etcd on loopback, without the relay; the time counts from before the write. Each drain is taken back by the next
order. Needs `.venv` and etcd, which is compiled once where it is missing.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable

import ebbtide
from ebbtide.etcd import EtcdClient
from ebbtide.protocol import Desired, Keys, Order
from tests.bench.figures import Figure, show
from tests.contract.member import Member

ORDERS = 500
GLANCE_S = 0.0001
PATIENCE_S = 10.0

NAMESPACE, UID = "bench", "uid-of-the-bench"


def settings(url: str) -> ebbtide.Settings:
    """Return those of a managed pod."""
    return ebbtide.Settings(
        admin_port=0,
        pod_name="bench-0",
        pod_namespace=NAMESPACE,
        pod_uid=UID,
        workload="deployment/bench",
        endpoints=(url,),
        limits=ebbtide.Limits(),
    )


def wait_until(condition: Callable[[], object], glance_s: float = GLANCE_S) -> float:
    """Wait in a thread of one's own until something holds; return when that was seen.

    Raises:
        TimeoutError: It does not.
    """
    give_up_at = time.perf_counter() + PATIENCE_S
    while not condition():
        if time.perf_counter() > give_up_at:
            raise TimeoutError("an order was not obeyed")
        time.sleep(glance_s)
    return time.perf_counter()


def order_and_wait(runtime: ebbtide.Runtime, store: EtcdClient) -> list[float]:
    """Return the seconds of each order to drain."""
    key = Keys().order(NAMESPACE, UID)
    wait_until(lambda: runtime.sample().store_connected)
    took_s: list[float] = []
    for generation in range(1, 2 * ORDERS, 2):
        drain = Order(desired=Desired.DRAIN, generation=generation, epoch=1, quiesce_s=0.0, drain_timeout_s=600.0)
        began_at = time.perf_counter()
        store.put(key, drain.encode())
        took_s.append(wait_until(lambda: not runtime.intake_open) - began_at)
        # The next order is news only where it has a newer generation.
        store.put(key, Order(desired=Desired.SERVE, generation=generation + 1, epoch=1).encode())
        wait_until(lambda: runtime.intake_open and runtime.ready)
    return took_s


async def measure(url: str) -> list[float]:
    store = EtcdClient([url], timeout_s=5)
    try:
        async with ebbtide.Runtime(settings(url), watchdog=False) as runtime:
            return await asyncio.to_thread(order_and_wait, runtime, store)
    finally:
        store.close()


def figures() -> list[Figure]:
    """Return what was measured for G11."""
    logging.disable()
    etcd = Member()
    try:
        etcd.start()
        took_s = asyncio.run(measure(etcd.url))
    finally:
        etcd.close()
    p99_ms = statistics.quantiles(took_s, n=100)[-1] * 1e3
    median_ms = statistics.median(took_s) * 1e3
    what = f"order written to etcd on loopback to intake closed, p99 of {ORDERS} (median {median_ms:.2g} ms)"
    return [Figure("G11", what, p99_ms, "ms", 50.0)]


if __name__ == "__main__":
    show(figures())
