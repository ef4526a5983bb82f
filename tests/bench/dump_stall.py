"""How long a dump of 100,000 tasks or a look for leaks takes, and how long it stops the loop: 20 s.

`python -m tests.bench.dump_stall`; goal G13.

Beside it stands the longest stall of as much time without a dump: on a busy machine that is the machine's own.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import ebbtide
from tests.bench.figures import Figure

TASKS = 100_000
REPEATS = 5


async def leaf() -> None:
    await asyncio.sleep(3600)


async def handle() -> None:
    await leaf()


async def stall_of(waiting: asyncio.Task[object]) -> float:
    """Return the longest time between two turns of the loop until a task has ended."""
    last_at, longest_s = time.perf_counter(), 0.0
    while not waiting.done():
        await asyncio.sleep(0.0005)
        now = time.perf_counter()
        longest_s, last_at = max(longest_s, now - last_at), now
    return longest_s


async def measure(look: Callable[[dict[str, str]], str], query: dict[str, str]) -> tuple[float, float, float, int]:
    """Return the seconds of a dump, the longest stalls with and without it, and its characters."""
    started_at = time.perf_counter()
    dumping: asyncio.Task[str] = asyncio.create_task(asyncio.to_thread(look, query))
    stall_s = await stall_of(dumping)
    took_s = time.perf_counter() - started_at
    own_s = await stall_of(asyncio.create_task(asyncio.sleep(took_s)))
    return took_s, stall_s, own_s, len(await dumping)


@dataclass(frozen=True, slots=True)
class Seen:
    """The medians of one kind of look."""

    took_s: float
    stall_s: float
    own_s: float
    characters: int


async def look_at_all() -> AsyncIterator[tuple[str, Seen]]:
    """Return what each kind of look was like."""
    async with ebbtide.Runtime(ebbtide.Settings(admin_port=0, limits=ebbtide.Limits()), watchdog=False) as runtime:
        scope = runtime.scope("bench")
        for _ in range(TASKS):
            scope.spawn(handle())
        await asyncio.sleep(0)
        gc.collect()
        looks: dict[str, tuple[Callable[[dict[str, str]], str], dict[str, str]]] = {
            "text": (runtime.dump, {}),
            "collapsed": (runtime.dump, {"format": "collapsed"}),
            "json": (runtime.dump, {"format": "json", "limit": str(TASKS)}),
            "no leaks": (runtime.leaks_view, {}),
            "all stale": (runtime.leaks_view, {}),
        }
        for name, (look, query) in looks.items():
            scope.heartbeat_s = 1e-6 if name == "all stale" else None
            runs = [await measure(look, query) for _ in range(REPEATS)]
            took_s, stall_s, own_s = (statistics.median(run[place] for run in runs) for place in range(3))
            yield name, Seen(took_s, stall_s, own_s, runs[0][3])
        scope.cancel("the bench is over")


async def measure_all() -> dict[str, Seen]:
    return {name: seen async for name, seen in look_at_all()}


def figures() -> list[Figure]:
    """Return what was measured for G13."""
    logging.disable()
    seen = asyncio.run(measure_all())["text"]
    grouped = f"dump of {TASKS:,} tasks, grouped by where they wait"
    stop = f"its longest stop of the loop (without: {seen.own_s * 1e3:.1f} ms)"
    return [
        Figure("G13", grouped, seen.took_s * 1e3, "ms", 250.0),
        Figure("G13", stop, seen.stall_s * 1e3, "ms", 10.0),
    ]


async def main() -> None:
    async for name, seen in look_at_all():
        sys.stdout.write(
            f"{name:<10} {seen.took_s * 1e3:6.0f} ms, longest stall {seen.stall_s * 1e3:5.1f} ms "
            f"(without a dump {seen.own_s * 1e3:5.1f} ms), {seen.characters / 1e6:.1f} million characters\n"
        )


if __name__ == "__main__":
    asyncio.run(main())
