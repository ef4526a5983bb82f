"""The load generator and ledger: `python -m orders.load`.

Open loop: orders arrive by a Poisson process whatever the service does. Every target of a run gets the same stream,
order by order, so that targets can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from aiohttp import web

from .accounts import OrderRecord
from .client import Client
from .ledger import DuplicateRunError, Ledger, Run
from .marks import Mark

MAX_RATE = 200.0
"""Orders per second and target: more than one process can send."""
MAX_DURATION_S = 3600.0

logger = logging.getLogger("orders.load")


@dataclass(frozen=True, slots=True)
class WorkDistribution:
    """How long orders take: log-normal, clipped."""

    median_s: float = 3.0
    sigma: float = 1.0
    min_s: float = 0.2
    max_s: float = 20.0

    def draw(self, rng: random.Random) -> float:
        return min(max(self.median_s * rng.lognormvariate(0.0, self.sigma), self.min_s), self.max_s)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What to send, where to, and for how long at most."""

    name: str
    targets: Mapping[str, str]
    """URL by Deployment."""
    rate: float
    """Orders per second for each target."""
    duration_s: float
    seed: int = 0
    work: WorkDistribution = field(default_factory=WorkDistribution)

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a request.

        Raises:
            ValueError: Names the field and what it must be.
        """
        try:
            spec = cls(**{**document, "work": WorkDistribution(**document.get("work", {}))})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"run: {error}") from error
        if not spec.targets:
            raise ValueError("targets: must name at least one Deployment and its URL")
        if not 0 < spec.rate <= MAX_RATE:
            raise ValueError(f"rate: must be above 0 and up to {MAX_RATE:g} orders per second, not {spec.rate!r}")
        if not 0 < spec.duration_s <= MAX_DURATION_S:
            raise ValueError(f"duration_s: must be above 0 and up to {MAX_DURATION_S:g} s, not {spec.duration_s!r}")
        return spec


class LoadGenerator:
    """Send the orders of runs, and answer for the ledger over HTTP."""

    def __init__(self) -> None:
        self._ledger = Ledger(time.time)
        self._session: aiohttp.ClientSession | None = None
        self._senders: dict[str, list[asyncio.Task[None]]] = {}
        self._placing: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """Return the routes: marks for pods, runs for whoever drives the load."""
        application = web.Application(client_max_size=1 << 20)
        application.router.add_get("/healthz", self.healthz)
        application.router.add_post("/marks", self.take_mark)
        application.router.add_post("/runs", self.start_run)
        application.router.add_get("/runs/{name}", self.show_run)
        application.router.add_post("/runs/{name}/stop", self.stop_run)
        application.router.add_get("/runs/{name}/orders", self.dump_run)
        application.cleanup_ctx.append(self._client_session)
        return application

    async def _client_session(self, _: web.Application) -> Any:
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            self._session = session
            yield
            tasks = [*self._placing, *(task for senders in self._senders.values() for task in senders)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response()

    async def take_mark(self, request: web.Request) -> web.Response:
        try:
            mark = Mark.from_json(await request.json())
        except (ValueError, TypeError) as error:
            return web.json_response({"error": f"mark: {error}"}, status=400)
        self._ledger.mark(mark)
        return web.json_response({})

    async def start_run(self, request: web.Request) -> web.Response:
        try:
            spec = RunSpec.from_json(await request.json())
            run = self._ledger.open_run(spec.name)
        except DuplicateRunError as error:
            return web.json_response({"error": str(error)}, status=409)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        loop = asyncio.get_running_loop()
        senders = [loop.create_task(self._send(run, spec, *target)) for target in spec.targets.items()]
        self._senders[spec.name] = senders
        for sender in senders:
            sender.add_done_callback(lambda _: self._close(run, senders))
        return web.json_response(self._ledger.summary(run), status=201)

    async def show_run(self, request: web.Request) -> web.Response:
        return web.json_response(self._ledger.summary(self._find(request)))

    async def stop_run(self, request: web.Request) -> web.Response:
        run = self._find(request)
        for sender in self._senders[run.name]:
            sender.cancel()
        await asyncio.wait(self._senders[run.name])
        return web.json_response(self._ledger.summary(run))

    async def dump_run(self, request: web.Request) -> web.Response:
        return web.json_response(self._ledger.dump(self._find(request)))

    def _find(self, request: web.Request) -> Run:
        run = self._ledger.run(request.match_info["name"])
        if run is None:
            raise web.HTTPNotFound(text=f"no run {request.match_info['name']!r}")
        return run

    @staticmethod
    def _close(run: Run, senders: list[asyncio.Task[None]]) -> None:
        if run.stopped_at is None and all(sender.done() for sender in senders):
            run.stopped_at = time.time()

    async def _send(self, run: Run, spec: RunSpec, deployment: str, url: str) -> None:
        if self._session is None:
            raise RuntimeError("LoadGenerator: the application is not started")
        # The same seed for every target: all get the same orders at the same times.
        rng = random.Random(spec.seed)
        client = Client(self._session, url, time.time, random.Random(f"{spec.seed}/{deployment}"))
        loop = asyncio.get_running_loop()
        end_at = loop.time() + spec.duration_s
        due_at = loop.time()
        number = 0
        while (due_at := due_at + rng.expovariate(spec.rate)) < end_at:
            work_s = spec.work.draw(rng)
            # Late arrivals are sent at once: the rate holds even where this process was held up.
            await asyncio.sleep(due_at - loop.time())
            number += 1
            order = OrderRecord(f"{spec.name}.{deployment}.{number}", deployment, work_s, time.time())
            self._ledger.enter(run, order)
            task = loop.create_task(client.place(order), name=order.id)
            self._placing.add(task)
            task.add_done_callback(self._placed)

    def _placed(self, task: asyncio.Task[None]) -> None:
        self._placing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its order stays open, which fails the run: an error here must not pass for a result.
            logger.error("%s: the client failed", task.get_name(), exc_info=error)


def parse_arguments(argv: list[str] | None, environment: Mapping[str, str]) -> argparse.Namespace:
    """Read flags; the port's default is ORDERS_LOAD_PORT."""
    parser = argparse.ArgumentParser(prog="orders.load", description="Send orders, and know what became of each.")
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 (a pod is reached from outside)
    parser.add_argument("--port", type=int, default=environment.get("ORDERS_LOAD_PORT", "8090"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the load generator as a process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    arguments = parse_arguments(argv, os.environ)
    application = LoadGenerator().application()
    web.run_app(application, host=arguments.host, port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
