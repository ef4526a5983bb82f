"""Requests that fail during rolling restarts: `python -m tests.bench.rolling_restart`, about eight minutes.

Three pods under uvicorn, real processes on loopback, are replaced one by one, again and again, while clients ask. As
with kube-proxy, a client's connection goes to one pod and stays there; new connections go round among the endpoints; a
pod leaves the endpoints only some seconds after it was told to end. A request fails where it is not answered with 200
and a whole body, whatever the reason: refused, reset, cut off, 503. Nothing is tried again.

Setups:
- plain: SIGTERM.
- sleep: preStop sleeps for ten seconds, then SIGTERM; the best that Kubernetes has by itself.
- signal: the library, but SIGTERM without preStop: uvicorn closes its listener at once all the same.
- ebbtide: preStop asks the library, which answers when the pod is drained, then SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import ebbtide
from ebbtide.asgi import DrainMiddleware
from tests.bench.figures import Figure, show
from tests.contract.servers.running import free_port

ROOT = Path(__file__).parents[2]
MODULE = "tests.bench.rolling_restart"
REQUESTS = 100_000
PODS = 3
LAG_S = 5.0
"""From the end of a pod's life to the end of its endpoint."""
SLEEP_S = 10.0
QUIESCE_S = 7.0
GIVE_UP_S = 30.0
AFTER_FAILURE_S = 0.02


@dataclass(frozen=True, slots=True)
class Kind:
    """How some of the clients behave."""

    name: str
    clients: int
    pause_s: tuple[float, float]
    """Between two requests of one client."""
    takes_s: tuple[float, float] = (0.0, 0.0)
    keeps: bool = True
    """Whether it keeps its connection for the next request."""


KINDS = (
    Kind("eager", 3, (0.0, 0.004)),
    Kind("busy", 30, (0.02, 0.06)),
    Kind("idle", 20, (0.5, 4.0)),
    Kind("slow", 12, (0.1, 0.5), takes_s=(1.0, 4.0)),
    Kind("fresh", 8, (0.03, 0.1), keeps=False),
)


def plain() -> Any:
    """Return the application."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        takes_s = float(parse_qs(scope["query_string"])[b"takes"][0])
        if takes_s:
            await asyncio.sleep(takes_s)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    return app


def drained() -> Any:
    """Return it behind the middleware."""
    return DrainMiddleware(plain(), ebbtide.Runtime.from_env())


@dataclass(slots=True)
class Pod:
    """One process."""

    port: int
    admin_port: int
    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, setup: Setup) -> Pod:
        """Start one and wait until it answers."""
        port, admin_port = free_port(), free_port()
        environment = {
            **os.environ,
            "EBBTIDE_ADMIN_ADDRESS": f"127.0.0.1:{admin_port}",
            "EBBTIDE_QUIESCE_S": str(QUIESCE_S),
            "EBBTIDE_DRAIN_TIMEOUT_S": "15",
            "EBBTIDE_CANCEL_GRACE_S": "3",
        }
        arguments = ("-m", "uvicorn", "--factory", f"{MODULE}:{setup.app}", f"--port={port}", "--log-level=error")
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, env=environment)
        pod = cls(port, admin_port, process)
        async with asyncio.timeout(GIVE_UP_S):
            while not await asyncio.to_thread(pod.answers):  # noqa: ASYNC110 (it is another process)
                await asyncio.sleep(0.05)
        return pod

    def answers(self) -> bool:
        try:
            return _get(self.port, "/?takes=0") == 200
        except OSError:
            return False

    async def end(self, pre_stop: Callable[[Pod], Any]) -> float:
        """Do as the kubelet does; return for how many seconds it stayed."""
        began_at = time.monotonic()
        await pre_stop(self)
        self.process.terminate()
        async with asyncio.timeout(GIVE_UP_S):
            await self.process.wait()
        return time.monotonic() - began_at


async def _nothing(_pod: Pod) -> None:
    pass


async def _sleep(_pod: Pod) -> None:
    await asyncio.sleep(SLEEP_S)


async def _ask_ebbtide(pod: Pod) -> None:
    await asyncio.to_thread(_get, pod.admin_port, "/drain?start=prestop&wait=30")


@dataclass(frozen=True, slots=True)
class Setup:
    name: str
    app: str
    pre_stop: Callable[[Pod], Any]


EBBTIDE = Setup("ebbtide", "drained", _ask_ebbtide)
SETUPS = (
    Setup("plain", "plain", _nothing),
    Setup("sleep", "plain", _sleep),
    Setup("signal", "drained", _nothing),
    EBBTIDE,
)


@dataclass(slots=True)
class Outcome:
    """What became of the requests of one setup."""

    asked: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """By kind of client and reason."""
    closed: int = 0
    """Connections that ended in order, by `Connection: close` or before they were used again."""
    stayed_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def failures(self) -> int:
        return self.failed.total()


class Service:
    """The endpoints, as clients see them."""

    def __init__(self) -> None:
        self.endpoints: list[Pod] = []
        self._turns = itertools.count()

    def choose(self) -> Pod:
        return self.endpoints[next(self._turns) % len(self.endpoints)]

    async def remove(self, pod: Pod) -> None:
        await asyncio.sleep(LAG_S)
        self.endpoints.remove(pod)


class Client:
    """Asks, one request after the other, and keeps its connection where it may."""

    def __init__(self, kind: Kind, service: Service, outcome: Outcome, seed: int) -> None:
        self._kind = kind
        self._service = service
        self._outcome = outcome
        self._random = random.Random(seed)
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask_on(self, over: asyncio.Event) -> None:
        """Ask until it is over."""
        while not over.is_set():
            await asyncio.sleep(self._random.uniform(*self._kind.pause_s))
            self._outcome.asked += 1
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    why = await self._ask()
            except TimeoutError:
                why = "no answer"
            if why:
                self._outcome.failed[f"{self._kind.name}: {why}"] += 1
                self._hang_up()
                await asyncio.sleep(AFTER_FAILURE_S)
        self._hang_up()

    async def _ask(self) -> str:
        """Ask once; return why it failed, empty where it did not."""
        if self._link is not None and self._link[0].at_eof():
            # As any pool of connections does: it looks before it sends.
            self._outcome.closed += 1
            self._hang_up()
        again = self._link is not None
        try:
            if self._link is None:
                self._link = await asyncio.open_connection("127.0.0.1", self._service.choose().port)
        except ConnectionError:
            return "refused"
        reader, writer = self._link
        takes_s = self._random.uniform(*self._kind.takes_s)
        try:
            close = b"" if self._kind.keeps else b"connection: close\r\n"
            writer.write(b"GET /?takes=%.3f HTTP/1.1\r\nhost: shop\r\n%b\r\n" % (takes_s, close))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(5)
        except (OSError, asyncio.IncompleteReadError):
            return "closed under a request" if again else "cut off"
        if not head.startswith(b"http/1.1 200") or body != b"hello":
            return head[9:12].decode()
        if b"\r\nconnection: close" in head:
            self._outcome.closed += 1
            self._hang_up()
        return ""

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link[1].close()
            self._link = None


@contextlib.asynccontextmanager
async def _serving(setup: Setup) -> AsyncIterator[tuple[Service, list[Pod]]]:
    service, every = Service(), []
    try:
        service.endpoints = list(await asyncio.gather(*(Pod.start(setup) for _ in range(PODS))))
        every += service.endpoints
        yield service, every
    finally:
        for pod in every:
            with contextlib.suppress(ProcessLookupError):
                pod.process.kill()
            await pod.process.wait()


async def run(setup: Setup, requests: int = REQUESTS, load: int = 1) -> Outcome:
    """Restart the pods of a setup until so many requests were asked, `load` times as many clients at once."""
    outcome, over = Outcome(), asyncio.Event()
    async with _serving(setup) as (service, every), asyncio.TaskGroup() as tasks:
        began_at = time.monotonic()
        crowd = [kind for kind in KINDS for _ in range(load * kind.clients)]
        for seed, kind in enumerate(crowd):
            tasks.create_task(Client(kind, service, outcome, seed).ask_on(over))
        while outcome.asked < requests:
            outcome.stayed_s += await _roll(setup, service, every)
        outcome.took_s = time.monotonic() - began_at
        over.set()
    return outcome


async def _roll(setup: Setup, service: Service, every: list[Pod]) -> list[float]:
    """Replace every pod: a new one first, as a Deployment with maxSurge 1 and maxUnavailable 0; return their stays."""
    ends: list[asyncio.Task[float]] = []
    async with asyncio.TaskGroup() as tasks:
        for old in list(service.endpoints):
            new = await Pod.start(setup)
            every.append(new)
            service.endpoints.append(new)
            tasks.create_task(service.remove(old))
            ends.append(tasks.create_task(old.end(setup.pre_stop)))
    return [end.result() for end in ends]


def figures(requests: int = REQUESTS) -> list[Figure]:
    """Return G18: the requests that failed with ebbtide."""
    return _as_figures(asyncio.run(run(EBBTIDE, requests)), requests)


def _as_figures(outcome: Outcome, requests: int) -> list[Figure]:
    what = f"requests failed of {outcome.asked:,} in {len(outcome.stayed_s)} restarts, endpoints {LAG_S:g} s late"
    return [
        Figure("G18", what, outcome.failures, "requests", 0.0),
        Figure("G18", "requests asked for it", outcome.asked, "requests", requests, at_most=False),
    ]


def _lines(setup: Setup, outcome: Outcome) -> Iterator[str]:
    stayed_s = f"{statistics.median(outcome.stayed_s):.1f} s (at most {max(outcome.stayed_s):.1f} s)"
    yield (
        f"{setup.name:<8} {outcome.failures:>6} of {outcome.asked:,} failed, "
        f"{outcome.asked / outcome.took_s:,.0f} per s, {len(outcome.stayed_s)} pods stayed {stayed_s}"
    )
    for why, times in outcome.failed.most_common():
        yield f"{times:>15}  {why}"


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S + 5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each setup")
    parser.add_argument("--load", type=int, default=1, help="so many times the clients")
    parser.add_argument("--setup", choices=[setup.name for setup in SETUPS], action="append")
    chosen = parser.parse_args()
    for setup in SETUPS:
        if chosen.setup is None or setup.name in chosen.setup:
            outcome = asyncio.run(run(setup, chosen.requests, chosen.load))
            sys.stdout.write("\n".join(_lines(setup, outcome)) + "\n")
            sys.stdout.flush()
            if setup is EBBTIDE:
                show(_as_figures(outcome, chosen.requests))


if __name__ == "__main__":
    main()
