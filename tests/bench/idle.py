"""What a runtime costs while nothing happens (goal G14): `python -m tests.bench.idle`, 40 s.

CPU time of a process whose runtime is started, with the agent at a real etcd, the admin server and the patrols, as a
share of one core. Probes of a kubelet come on top. Needs `.venv` and etcd, as `tests.bench.order_latency`.
"""

from __future__ import annotations

import asyncio
import logging
import time

import ebbtide
from tests.bench.figures import Figure, show
from tests.bench.order_latency import settings
from tests.contract.member import Member

LASTS_S = 30.0
BEFORE_S = 1.0


async def share_of(runtime: ebbtide.Runtime | None) -> float:
    """Return the share of a core that this process takes while it does nothing."""
    await asyncio.sleep(BEFORE_S)
    if runtime is not None and not runtime.sample().store_connected:
        raise RuntimeError("the store is not connected")
    began_at, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.sleep(LASTS_S if runtime is not None else BEFORE_S)
    return (time.process_time() - began_cpu_s) / (time.perf_counter() - began_at)


async def measure(url: str) -> tuple[float, float]:
    """Return the shares without and with a runtime."""
    without = await share_of(None)
    async with ebbtide.Runtime(settings(url), watchdog=False) as runtime:
        return without, await share_of(runtime)


def figures() -> list[Figure]:
    """Return what was measured for G14."""
    logging.disable()
    etcd = Member()
    try:
        etcd.start()
        without, share = asyncio.run(measure(etcd.url))
    finally:
        etcd.close()
    what = f"CPU of an idle runtime with agent over {LASTS_S:g} s (a bare loop {without:.2%})"
    return [Figure("G14", what, share * 100, "% of a core", 1.0)]


if __name__ == "__main__":
    show(figures())
