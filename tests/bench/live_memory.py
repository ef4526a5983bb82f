"""What a live task takes of memory, beside a bare one (goal G7): `python -m tests.bench.live_memory`, about 30 s.

Growth of the resident set for 100,000 tasks that sleep; one process per variant, so that none uses what another freed.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import ebbtide
from tests.bench.figures import Figure, show

TASKS = 100_000
REPEATS = 3

Grow = Callable[[], Awaitable[int]]


async def sleep() -> None:
    await asyncio.sleep(3600)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def start_all(start: Callable[[], object]) -> int:
    """Return the bytes that so many tasks take."""
    gc.collect()
    gc.freeze()
    before = resident()
    kept = [start() for _ in range(TASKS)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    grown = resident() - before
    assert len(kept) == TASKS
    return grown


async def bare() -> int:
    loop = asyncio.get_running_loop()
    return await start_all(lambda: loop.create_task(sleep()))


async def task_group() -> int:
    async with asyncio.TaskGroup() as tasks:
        leave(await start_all(lambda: tasks.create_task(sleep())))
    raise AssertionError


async def aiojobs() -> int:
    scheduler = importlib.import_module("aiojobs").Scheduler(limit=None, pending_limit=0)
    gc.collect()
    gc.freeze()
    before = resident()
    for _ in range(TASKS):
        await scheduler.spawn(sleep())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return resident() - before


async def spawn() -> int:
    async with ebbtide.Runtime(ebbtide.Settings(admin_port=0, limits=ebbtide.Limits()), watchdog=False) as runtime:
        scope = runtime.scope("crowd")
        leave(await start_all(lambda: scope.spawn(sleep())))
    raise AssertionError


VARIANTS: dict[str, Grow] = {"bare": bare, "TaskGroup": task_group, "aiojobs": aiojobs, "spawn": spawn}


def leave(grown: int) -> None:
    """Say the figure and end at once: ending so many tasks takes longer than the rest."""
    sys.stdout.write(f"{grown}\n")
    sys.stdout.flush()
    os._exit(0)


async def grow(variant: str) -> None:
    leave(await VARIANTS[variant]())


def bytes_of(variant: str) -> float:
    """Return the bytes per task, the median of several processes."""
    command = [sys.executable, "-m", "tests.bench.live_memory", variant]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(REPEATS)]
    return statistics.median(int(run.stdout) / TASKS for run in runs)


def figures() -> list[Figure]:
    """Return what was measured for G7."""
    names = [name for name in VARIANTS if name != "aiojobs" or importlib.util.find_spec("aiojobs")]
    sizes = {name: bytes_of(name) for name in names}
    peers = ", ".join(f"{name} {sizes[name] - sizes['bare']:+.0f}" for name in names if name not in {"bare", "spawn"})
    what = f"memory of a live spawned task beyond a bare one ({sizes['bare']:.0f} B); {peers}"
    return [Figure("G7", what, sizes["spawn"] - sizes["bare"], "B", 256.0)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(grow(sys.argv[1]))
    else:
        show(figures())
