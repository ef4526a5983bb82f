"""How often the trend is told right on the example service, under three loads: `python -m tests.bench.trend_loads`.

Orders come over real HTTP to `examples/orders` with Ebbtide, fifty times as fast as life: a sample each 0.2 s in place
of 10 s. Each load runs in a process of its own, with several services that differ in their rate.

- steady: orders of usual length arrive and end.
- leaking: some orders do not end; their clients hang up, and the service goes on with them.
- churning: the ledger takes what is done in batches, so that orders pile up and go at once.

Each window of 60 samples is one answer, starts included. Beside it stands what the rules for leaks suspect at the end.
It takes a minute, and half a core; where samples come late, the machine is too busy for the figures to mean much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from ebbtide.environment import ADMIN_ADDRESS, DEFAULT_LEAK_AGE_S, LEAK_AGE, LEAK_IGNORE, MAX_TASKS, TASKS_PER_S
from ebbtide.leaks.trend import Shape, classify
from ebbtide.leaks.trendwatch import KEPT, TrendWatch
from examples.orders.orders.app import MAX_WORK_S, OrderService
from examples.orders.orders.load import WorkDistribution
from examples.orders.orders.managed import ManagedIntake
from examples.orders.orders.marks import LedgerClient, MarkKind

FASTER = 50.0
SAMPLE_S = 10.0 / FASTER
PATIENCE_S = 200.0 / FASTER
WINDOWS = 4
SERVICES = 5
LOADS = {"steady": Shape.NORMAL, "leaking": Shape.GROWTH, "churning": Shape.SAWTOOTH}
WORK = WorkDistribution(median_s=30 / FASTER, sigma=0.6, min_s=5 / FASTER, max_s=150 / FASTER)


class Seen(TypedDict):
    """Of one service: the samples, what was suspected of leaking at their end by rule, and the part that came late."""

    counts: list[int]
    suspected: dict[str, int]
    late: float


@dataclass(slots=True)
class Ledger:
    """Takes marks at once, or what is completed in batches."""

    every_s: float | None
    flushed: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        mark = await request.json()
        if self.every_s is not None and mark["kind"] == MarkKind.COMPLETED:
            await self.flushed.wait()
        return web.json_response({})

    async def flush(self) -> None:
        while self.every_s is not None:
            await asyncio.sleep(self.every_s)
            flushed, self.flushed = self.flushed, asyncio.Event()
            flushed.set()


async def listen(path: str, handler: Callable[[web.Request], object]) -> str:
    application = web.Application()
    application.router.add_post(path, handler)  # type: ignore[arg-type]
    return await serve(application)


async def serve(application: web.Application) -> str:
    server = TestServer(application)
    await server.start_server()
    return str(server.make_url("/")).rstrip("/")


async def send(session: aiohttp.ClientSession, url: str, rng: random.Random, load: str) -> None:
    """Send orders for ever: a Poisson stream whose rate is the service's own."""
    rate = rng.uniform(0.08, 0.3) * FASTER
    stuck = rng.uniform(0.15, 0.5) if load == "leaking" else 0.0
    placing: set[asyncio.Task[None]] = set()
    loop, number = asyncio.get_running_loop(), 0
    due_at = loop.time()
    while True:
        # Late ones are sent at once: the rate holds on a busy machine too.
        due_at += rng.expovariate(rate)
        await asyncio.sleep(due_at - loop.time())
        number += 1
        work_s = MAX_WORK_S if rng.random() < stuck else WORK.draw(rng)
        task = asyncio.create_task(place(session, url, {"id": f"order-{number}", "work_s": work_s}))
        placing.add(task)
        task.add_done_callback(placing.discard)


async def place(session: aiohttp.ClientSession, url: str, order: dict[str, object]) -> None:
    try:
        async with session.post(f"{url}/orders", json=order):
            pass
    except TimeoutError:
        pass  # the client hangs up; its order is the service's


async def one_service(session: aiohttp.ClientSession, load: str, seed: int) -> Seen:
    """Return what was seen of one service under a load."""
    rng = random.Random(f"{load}/{seed}")
    book = Ledger(rng.uniform(60, 150) / FASTER if load == "churning" else None)
    ledger_url = await listen("/marks", book.take)
    intake = ManagedIntake(lambda _: None)
    await intake.__aenter__()
    ledger = await LedgerClient(ledger_url, f"{load}-{seed}").__aenter__()
    url = await serve(OrderService(intake, ledger).application())
    going_on = [asyncio.create_task(book.flush()), asyncio.create_task(send(session, url, rng, load))]
    loop, counts, late = asyncio.get_running_loop(), list[int](), list[float]()
    began_at = loop.time()
    while len(counts) < WINDOWS * KEPT:
        late.append(loop.time() - began_at - len(counts) * SAMPLE_S)
        counts.append(intake._runtime.tasks_left)
        await asyncio.sleep(began_at + len(counts) * SAMPLE_S - loop.time())
    for task in going_on:
        task.cancel()
    findings = await asyncio.to_thread(intake._runtime.leaks)
    suspected = {str(finding.rule): finding.count for finding in findings}
    return {"counts": counts, "suspected": suspected, "late": sum(each > SAMPLE_S / 2 for each in late) / len(late)}


async def under(load: str, seed: int) -> None:
    """Print the counts of all services under a load as JSON."""
    os.environ |= {ADMIN_ADDRESS: "127.0.0.1:0", MAX_TASKS: "0", TASKS_PER_S: "0"}
    # The clients of this process are no part of the service.
    os.environ |= {LEAK_AGE: f"{DEFAULT_LEAK_AGE_S / FASTER}", LEAK_IGNORE: "*"}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        series = await asyncio.gather(*(one_service(session, load, one) for one in range(seed, seed + SERVICES)))
        sys.stdout.write(json.dumps(series))
        sys.stdout.flush()
        os._exit(0)  # a drain would wait for the orders that are stuck


def changes(counts: list[int]) -> list[str]:
    """Return what the watch of a process with these counts would have told, each change once."""
    watch, told = TrendWatch(SAMPLE_S), [str(Shape.NORMAL)]
    for count in counts:
        watch.sample(count)
        if watch.trend.shape != told[-1]:
            told.append(str(watch.trend.shape))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", choices=LOADS, help="print the counts of one load")
    parser.add_argument("--seed", type=int, default=100, help="of the first service")
    chosen = parser.parse_args()
    if chosen.load:
        asyncio.run(under(chosen.load, chosen.seed))
        return
    logging.getLogger("ebbtide").setLevel(logging.ERROR)  # what it would tell is printed below
    running = {
        load: subprocess.Popen(
            [sys.executable, "-m", "tests.bench.trend_loads", "--load", load, "--seed", str(chosen.seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for load in LOADS
    }
    table: Counter[tuple[Shape, Shape]] = Counter()
    for load, process in running.items():
        found: list[Seen] = json.loads(process.communicate()[0])
        for seen in found:
            counts = seen["counts"]
            windows = [counts[start : start + KEPT] for start in range(0, len(counts), KEPT)]
            answers = [classify(window, SAMPLE_S) for window in windows]
            table.update((LOADS[load], answer.shape) for answer in answers)
            growth = answers[-1].growth_per_s / FASTER
            sys.stdout.write(
                f"{load:<9} {min(counts):>4} to {max(counts):<4} tasks, growth {growth:+.4f}/s of life, "
                f"windows {' '.join(answer.shape for answer in answers)}; told {' > '.join(changes(counts))}; "
                f"suspected {', '.join(f'{rule} {count}' for rule, count in seen['suspected'].items()) or 'none'}; "
                f"late samples {seen['late']:.0%}\n"
            )
    for shape in Shape:
        right = table[shape, shape]
        said = sum(count for (_, answer), count in table.items() if answer is shape)
        were = sum(count for (truth, _), count in table.items() if truth is shape)
        precision = f"{right / said:.2f}" if said else "none said"
        sys.stdout.write(f"{shape:<9} precision {precision}  recall {right / were:.2f}  ({were} windows)\n")


if __name__ == "__main__":
    main()
