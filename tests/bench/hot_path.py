"""What a spawned task costs: `python -m tests.bench.hot_path`, about three minutes on one core.

Each variant once in each round, in random order; CPU time of this thread; median of the ratios to a bare `create_task`
of the same round. `window`: a thousand at a time; `burst`: ten thousand at once. uvloop and aiojobs are measured where
they are installed. What live tasks weigh: `tests.bench.live_memory`.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import ebbtide
from tests.bench.figures import Figure, show

TASKS = 1000
WINDOWS = 5
BURST = 10_000
ROUNDS = 25
CALLS = 100_000
REPEATS = 1000
WORK_S = 20e-6
PLENTY = 1e9

Variant = Callable[[int], Awaitable[None]]
Work = Callable[[], Coroutine[Any, Any, None]]
Took = Mapping[str, list[float]]

BARE, TIMEOUT, GROUP, JOBS = "bare", "bare, asyncio.timeout", "TaskGroup", "aiojobs"
SPAWN, BEAT, LIMIT = "spawn", "spawn, heartbeat", "spawn, time limit"
LIMIT_S = 60.0


async def nothing() -> None:
    pass


async def beat() -> None:
    ebbtide.heartbeat()


def busy(seconds: float) -> Work:
    """Return a coroutine function that computes for so long."""
    count = REPEATS
    for _ in range(3):  # small numbers are cheaper than large ones: near the right count it is measured anew
        began = time.thread_time()
        for _ in range(REPEATS):
            sum(range(count))
        count = max(1, int(count * seconds * REPEATS / (time.thread_time() - began)))

    async def compute() -> None:
        sum(range(count))

    return compute


def bare(work: Work) -> Variant:
    async def create(count: int) -> None:
        loop = asyncio.get_running_loop()
        for task in [loop.create_task(work()) for _ in range(count)]:
            await task

    return create


def timing_out(work: Work) -> Work:
    """Return what limits itself as a service does that has no library for it."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await work()

    return limited


def group(work: Work) -> Variant:
    async def enter(count: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(work())

    return enter


def spawning(scope: ebbtide.Scope, work: Work, timeout_s: float | None = None) -> Variant:
    async def spawn(count: int) -> None:
        for task in [scope.spawn(work(), timeout_s=timeout_s) for _ in range(count)]:
            await task

    return spawn


def jobs(work: Work) -> Variant:
    scheduler = importlib.import_module("aiojobs").Scheduler(limit=None)

    async def spawn(count: int) -> None:
        for job in [await scheduler.spawn(work()) for _ in range(count)]:
            await job.wait()

    return spawn


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def a_runtime() -> ebbtide.Runtime:
    # So high that they are asked each time and never say no.
    limits = ebbtide.Limits(max_tasks=int(PLENTY), rate_per_s=PLENTY, burst=int(PLENTY), breaker_timeouts=5)
    return ebbtide.Runtime(ebbtide.Settings(admin_port=0, limits=limits), watchdog=False)


async def measure(windows: int, count: int, work: Work, *, all_variants: bool) -> Took:
    """Return the CPU microseconds per task of each variant, one of each round."""
    async with a_runtime() as runtime:
        scope = runtime.scope("bench")
        variants = {BARE: bare(work), GROUP: group(work), SPAWN: spawning(scope, work)}
        if all_variants:
            variants |= {
                BEAT: spawning(scope, beat),
                LIMIT: spawning(scope, work, LIMIT_S),
                TIMEOUT: bare(timing_out(work)),
            }
        if has("aiojobs"):
            variants[JOBS] = jobs(work)
        took: dict[str, list[float]] = {name: [] for name in variants}
        order = random.Random(7)
        for _ in range(ROUNDS):
            for name, variant in order.sample(list(variants.items()), len(variants)):
                # Warm: the first of its kind pays for memory that the one before gave back to the kernel.
                await variant(count)
                gc.collect()
                started = time.thread_time()
                for _ in range(windows):
                    await variant(count)
                took[name].append((time.thread_time() - started) / (windows * count) * 1e6)
        return took


def ratio(took: Took, name: str, floor: str = BARE) -> float:
    return statistics.median(one / other for one, other in zip(took[name], took[floor], strict=True))


def print_times(title: str, took: Took) -> None:
    for name, times in took.items():
        sys.stdout.write(
            f"{title:<16} {name:<21} {statistics.median(times):6.2f} us  {ratio(took, name):5.2f} x bare\n"
        )


def of_loop(loop: str) -> list[Figure]:
    """Return what is measured under one kind of loop."""
    run: Callable[[Coroutine[Any, Any, Took]], Took] = importlib.import_module(loop).run
    figures = []
    for shape, windows, count in (("window", WINDOWS, TASKS), ("burst", 1, BURST)):
        took = run(measure(windows, count, nothing, all_variants=True))
        title = f"{loop} {shape}"
        print_times(title, took)
        exact = ratio(took, SPAWN)
        figures += [
            Figure("G1", f"{title}: spawn and end", exact, "x bare", 1.65),
            Figure("G1", f"{title}: spawn and end", ratio(took, SPAWN, GROUP), "x TaskGroup", 1.05),
            Figure(
                "G2", f"{title}: the same (there is no lazy mode)", exact, "x bare", 1.3 if loop == "uvloop" else 1.2
            ),
            Figure("G4", f"{title}: a heartbeat on top", ratio(took, BEAT) - exact, "x bare", 0.35),
            Figure("G4", f"{title}: with a time limit", ratio(took, LIMIT, TIMEOUT), "x asyncio.timeout", 1.65),
        ]
    took = run(measure(1, TASKS, busy(WORK_S), all_variants=False))
    print_times(f"{loop} 20 us", took)
    return [*figures, Figure("G3", f"{loop}: tasks of 20 us", ratio(took, SPAWN), "x bare", 1.15)]


async def small_operations() -> list[Figure]:
    """Return what single calls cost, in nanoseconds; the loop around them is taken off."""

    def empty() -> None:
        for _ in range(CALLS):
            pass

    def track() -> None:
        for _ in range(CALLS):
            with scope.track():
                pass

    def ask() -> None:
        for _ in range(CALLS):
            runtime.intake_open  # noqa: B018 (the look is what is measured)

    def took_ns(function: Callable[[], None]) -> float:
        times = []
        for _ in range(ROUNDS):
            began = time.thread_time()
            function()
            times.append((time.thread_time() - began) / CALLS * 1e9)
        return statistics.median(times)

    async with a_runtime() as runtime:
        scope = runtime.scope("bench")
        floor = took_ns(empty)
        return [
            Figure("G5", "track() in place", took_ns(track) - floor, "ns", 900),
            Figure("G12", "runtime.intake_open", took_ns(ask) - floor, "ns", 60),
        ]


def figures() -> list[Figure]:
    """Measure everything; prints the times on the way."""
    loops = ["asyncio", *(["uvloop"] if has("uvloop") else [])]
    return [
        *(figure for loop in loops for figure in of_loop(loop)),
        *asyncio.run(small_operations()),
    ]


if __name__ == "__main__":
    show(figures())
