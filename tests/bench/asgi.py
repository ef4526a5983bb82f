"""What the ASGI middleware adds to a request: `python -m tests.bench.asgi`, about 10 s on one core.

A hand-driven application that answers at once, bare and behind the middleware, each once in each round in random order;
CPU time of this thread; the median of the differences of each round.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
import time
from typing import Any

import ebbtide
from ebbtide.asgi import DrainMiddleware
from tests.bench.figures import Figure, show

REQUESTS = 20_000
ROUNDS = 15
MOST_NS = 2000.0

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
BODY = {"type": "http.response.body", "body": b"ok"}
CONNECTION = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/orders", "headers": []}
INCOMING = {"type": "http.request", "body": b"", "more_body": False}


async def app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(START)
    await send(BODY)


async def receive() -> Any:
    return INCOMING


async def send(message: Any) -> None:
    pass


async def measure(rounds: int = ROUNDS, requests: int = REQUESTS) -> dict[str, list[float]]:
    """Return the CPU nanoseconds per request of each variant, one of each round."""
    runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0), watchdog=False)
    counted = runtime.scope("bench")

    async def tracked(scope: Any, receive: Any, send: Any) -> None:
        with counted.track("/orders"):
            await app(scope, receive, send)

    async with runtime:
        variants: dict[str, Any] = {"bare": app, "track": tracked, "middleware": DrainMiddleware(app, runtime)}
        took: dict[str, list[float]] = {name: [] for name in variants}
        order = random.Random(7)
        for _ in range(rounds):
            for name, variant in order.sample(list(variants.items()), len(variants)):
                gc.collect()
                started = time.thread_time_ns()
                for _ in range(requests):
                    await variant(CONNECTION, receive, send)
                took[name].append((time.thread_time_ns() - started) / requests)
        return took


def figures() -> list[Figure]:
    """Return G6: what is added per request, and for comparison what a bare `track()` adds."""
    took = asyncio.run(measure())
    added = {
        name: statistics.median(one - bare for one, bare in zip(times, took["bare"], strict=True))
        for name, times in took.items()
    }
    sys.stdout.write(f"bare {statistics.median(took['bare']):.0f} ns, track() alone +{added['track']:.0f} ns\n")
    return [Figure("G6", "ASGI middleware, added per request", added["middleware"], "ns", MOST_NS)]


if __name__ == "__main__":
    show(figures())
