"""Runtimes for tests: no store, any free port, no watchdog."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ebbtide
from ebbtide.lifecycle.machine import Durations


def a_runtime(**durations: float) -> ebbtide.Runtime:
    spend = Durations(**{"quiesce_s": 0.0, "drain_timeout_s": 30.0, "cancel_grace_s": 5.0} | durations)
    return ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=spend), watchdog=False)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the machine has a thread of its own and tells nobody)
            await asyncio.sleep(0.002)


@contextmanager
def without_collector() -> Iterator[None]:
    """Leave it to the counts of references what is freed while the block runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
