"""From the end of the last task to the process being drained, seen by another thread (goal G10).

`python -m tests.bench.published`, a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import threading
import time

import ebbtide
from ebbtide.lifecycle.machine import Durations
from tests.bench.figures import Figure, show

DRAINS = 1000
PATIENCE_S = 10.0


async def measure() -> list[float]:
    """Return the seconds of each drain of one process, which is taken back each time."""
    durations = Durations(quiesce_s=0.0, drain_timeout_s=60.0, cancel_grace_s=1.0)
    settings = ebbtide.Settings(admin_port=0, durations=durations, limits=ebbtide.Limits())
    took_s: list[float] = []
    loop = asyncio.get_running_loop()
    async with ebbtide.Runtime(settings, watchdog=False) as runtime:
        scope = runtime.scope("last")
        for _ in range(DRAINS):
            finish = asyncio.Event()
            ended_at = drained_at = 0.0
            waiting, over = threading.Event(), asyncio.Event()

            async def last(finish: asyncio.Event) -> None:
                nonlocal ended_at
                await finish.wait()
                ended_at = time.perf_counter()

            def watch(waiting: threading.Event, over: asyncio.Event) -> None:
                nonlocal drained_at
                waiting.set()
                if runtime.wait_drained(PATIENCE_S):
                    drained_at = time.perf_counter()
                loop.call_soon_threadsafe(over.set)

            scope.spawn(last(finish))
            runtime.drain("a bench", leave=False)
            threading.Thread(target=watch, args=(waiting, over)).start()
            waiting.wait()
            await asyncio.sleep(0.001)
            finish.set()
            await over.wait()
            if not drained_at:
                raise RuntimeError(f"not drained {PATIENCE_S:g} s after the last task")
            took_s.append(drained_at - ended_at)
            runtime.undrain()
    return took_s


def figures() -> list[Figure]:
    """Return what was measured for G10."""
    logging.disable()
    took_s = asyncio.run(measure())
    p99_ms = statistics.quantiles(took_s, n=100)[-1] * 1e3
    median_ms = statistics.median(took_s) * 1e3
    what = f"last task done to drained, p99 of {DRAINS:,} drains (median {median_ms:.2g} ms); pollers take up to 100 ms"
    return [Figure("G10", what, p99_ms, "ms", 5.0)]


if __name__ == "__main__":
    show(figures())
