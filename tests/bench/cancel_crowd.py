"""Cancelling 100,000 tasks: what it costs beside a bare `gather`, and how long it stops the loop (goals G8 and G9).

`python -m tests.bench.cancel_crowd`, about a minute. Everything in one process, in turn. Costs are CPU time of the
process from the call to the end of the last task; a stall is the longest time between two turns of the loop meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

import ebbtide
from ebbtide.lifecycle.machine import Durations
from ebbtide.protocol import PodState
from tests.bench.figures import Figure, show

TASKS = 100_000
ROUNDS = 9
AIOJOBS_TASKS = 10_000
"""Its close looks through all jobs for each that ends: ten times as many would take minutes."""
TURN_S = 0.0005
SOON_S = 0.1


class Run:
    """One cancel, from its call to the end of the last task."""

    def __init__(self) -> None:
        self.cpu_s = self.stall_s = 0.0
        self._began_s = time.process_time()
        self._last_at = time.perf_counter()
        self._over = False
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        while not self._over:
            await asyncio.sleep(TURN_S)
            self._look()

    def _look(self) -> None:
        now = time.perf_counter()
        self.stall_s, self._last_at = max(self.stall_s, now - self._last_at), now

    async def end(self) -> Run:
        """Stop the clocks."""
        self.cpu_s, self._over = time.process_time() - self._began_s, True
        self._look()
        await self._ticking
        return self


async def sleep() -> None:
    await asyncio.sleep(3600)


async def begin() -> Run:
    """Start the clocks once every task waits, on a heap without garbage."""
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0.01)
    return Run()


async def bare() -> Run:
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(sleep()) for _ in range(TASKS)]
    run = await begin()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return await run.end()


async def task_group() -> Run:
    started = asyncio.Event()

    async def hold() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(sleep())
            started.set()

    holding = asyncio.create_task(hold())
    await started.wait()
    run = await begin()
    holding.cancel()
    await asyncio.wait([holding])
    return await run.end()


async def aiojobs() -> Run:
    scheduler = importlib.import_module("aiojobs").Scheduler(limit=None, pending_limit=0)
    for _ in range(AIOJOBS_TASKS):
        await scheduler.spawn(sleep())
    run = await begin()
    await scheduler.close()
    await run.end()
    run.cpu_s *= TASKS / AIOJOBS_TASKS  # kind to it: the cost of one grows with their number
    return run


def a_runtime() -> ebbtide.Runtime:
    durations = Durations(quiesce_s=0.0, drain_timeout_s=SOON_S, cancel_grace_s=600.0)
    settings = ebbtide.Settings(admin_port=0, limits=ebbtide.Limits(), durations=durations)
    return ebbtide.Runtime(settings, watchdog=False)


async def crowd(scope: ebbtide.Scope) -> Run:
    for _ in range(TASKS):
        scope.spawn(sleep())
    return await begin()


async def by_scope() -> Run:
    async with a_runtime() as runtime:
        scope = runtime.scope("crowd")
        run = await crowd(scope)
        scope.cancel("enough")
        while runtime.tasks_left:  # noqa: ASYNC110 (nobody is told when a scope is empty)
            await asyncio.sleep(TURN_S)
        return await run.end()


async def by_drain() -> Run:
    async with a_runtime() as runtime:
        run = await crowd(runtime.scope("crowd"))
        runtime.drain("enough")  # its time passes, and then they are cancelled
        await runtime.wait_exit()
        assert runtime.state is PodState.EXITING
        return await run.end()


def measure() -> dict[str, list[Run]]:
    """Return the runs of each variant, one of each round."""
    logging.disable()
    variants: list[Callable[[], Coroutine[Any, Any, Run]]] = [bare, task_group, by_scope, by_drain]
    if importlib.util.find_spec("aiojobs") is not None:
        variants.append(aiojobs)
    runs: dict[str, list[Run]] = {variant.__name__: [] for variant in variants}
    for _ in range(ROUNDS):
        for variant in variants:
            runs[variant.__name__].append(asyncio.run(variant()))
            gc.collect()
    return runs


def figures() -> list[Figure]:
    """Return what was measured for G8 and G9."""
    runs = measure()
    ratios = {
        name: statistics.median(one.cpu_s / floor.cpu_s for one, floor in zip(mine, runs["bare"], strict=True))
        for name, mine in runs.items()
    }
    stalls_ms = {name: statistics.median(run.stall_s for run in mine) * 1e3 for name, mine in runs.items()}
    peers = f"TaskGroup {ratios['task_group']:.2f}"
    if "aiojobs" in ratios:
        peers += f", aiojobs with {AIOJOBS_TASKS:,} {ratios['aiojobs']:.2f}"
    base_s = statistics.median(run.cpu_s for run in runs["bare"])
    ways = (("by_scope", "Scope.cancel"), ("by_drain", "a drain"))
    cost = f"CPU; bare gather {base_s:.2f} s, {peers}"
    stop = f"bare {stalls_ms['bare']:.0f} ms"
    return [
        *(
            Figure("G8", f"cancel {TASKS:,} tasks by {what}, {cost}", ratios[name], "x bare", 1.15)
            for name, what in ways
        ),
        *(
            Figure("G9", f"longest stop of the loop meanwhile, by {what}; {stop}", stalls_ms[name], "ms", 50.0)
            for name, what in ways
        ),
    ]


if __name__ == "__main__":
    show(figures())
