"""What a spawned task costs: `python tests/bench/hot_path.py`, about 15 s on one core.

Each variant once in each round, in random order; CPU time of this thread; median of the ratios to a bare `create_task`
of the same round. Memory: growth of the resident set per live task, one process per variant.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import ebbtide

TASKS = 1000
WINDOWS = 10
ROUNDS = 16
LIVE = 50_000
PLENTY = 1e9

Variant = Callable[[int], Awaitable[None]]


async def work() -> None:
    pass


async def bare(count: int) -> None:
    loop = asyncio.get_running_loop()
    for task in [loop.create_task(work()) for _ in range(count)]:
        await task


async def group(count: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(work())


def spawning(scope: ebbtide.Scope, timeout_s: float | None = None) -> Variant:
    async def spawn(count: int) -> None:
        for task in [scope.spawn(work(), timeout_s=timeout_s) for _ in range(count)]:
            await task

    return spawn


def a_runtime() -> ebbtide.Runtime:
    # So high that they are asked each time and never say no.
    limits = ebbtide.Limits(max_tasks=int(PLENTY), rate_per_s=PLENTY, burst=int(PLENTY), breaker_timeouts=5)
    return ebbtide.Runtime(ebbtide.Settings(admin_port=0, limits=limits), watchdog=False)


async def measure(windows: int, count: int) -> dict[str, list[float]]:
    """Return the CPU microseconds per task of each variant, one of each round."""
    async with a_runtime() as runtime:
        scope = runtime.scope("bench")
        variants: dict[str, Variant] = {
            "bare": bare,
            "TaskGroup": group,
            "spawn": spawning(scope),
            "spawn, time limit": spawning(scope, 60.0),
        }
        took: dict[str, list[float]] = {name: [] for name in variants}
        for variant in variants.values():
            await variant(count)
        order = random.Random(7)
        for _ in range(ROUNDS):
            for name, variant in order.sample(list(variants.items()), len(variants)):
                # Warm again: the first of its kind pays for memory that the one before gave back to the kernel.
                await variant(count)
                gc.collect()
                started = time.thread_time()
                for _ in range(windows):
                    await variant(count)
                took[name].append((time.thread_time() - started) / (windows * count) * 1e6)
        return took


def show(shape: str, took: dict[str, list[float]]) -> dict[str, float]:
    ratios = {
        name: statistics.median(one / floor for one, floor in zip(times, took["bare"], strict=True))
        for name, times in took.items()
    }
    against_group = statistics.median(a / b for a, b in zip(took["spawn"], took["TaskGroup"], strict=True))
    for name, times in took.items():
        sys.stdout.write(f"{shape:<8} {name:<18} {statistics.median(times):6.2f} us  {ratios[name]:5.2f} x bare\n")
    sys.stdout.write(f"{shape:<8} spawn against TaskGroup: {against_group:.2f} x\n")
    return ratios


async def grow(variant: str) -> float:
    """Return the bytes per live task."""
    async with a_runtime() as runtime:
        scope = runtime.scope("bench")
        loop = asyncio.get_running_loop()
        gc.collect()
        gc.freeze()
        before = resident()
        if variant == "bare":
            tasks = [loop.create_task(asyncio.sleep(3600)) for _ in range(LIVE)]
        else:
            tasks = [scope.spawn(asyncio.sleep(3600)) for _ in range(LIVE)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        grown = (resident() - before) / LIVE
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return grown


def resident() -> int:
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grow", choices=["bare", "spawn"], help="print the bytes per live task of one variant")
    chosen = parser.parse_args()
    if chosen.grow:
        sys.stdout.write(json.dumps(asyncio.run(grow(chosen.grow))))
        return
    show("window", asyncio.run(measure(WINDOWS, TASKS)))
    show("burst", asyncio.run(measure(1, WINDOWS * TASKS)))
    sizes = {
        name: float(subprocess.run([sys.executable, __file__, "--grow", name], check=True, capture_output=True).stdout)
        for name in ("bare", "spawn")
    }
    sys.stdout.write(
        f"memory   bare {sizes['bare']:.0f} B, spawn {sizes['spawn'] - sizes['bare']:+.0f} B per live task\n"
    )


if __name__ == "__main__":
    main()
