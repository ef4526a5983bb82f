"""The order service: `python -m orders.app`.

`POST /orders` takes `{"id": "...", "work_s": 3.2}`, works for that long, tells the ledger, and only then acknowledges.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from aiohttp import web

from .intake import GracefulIntake, Intake, IntakeClosed, Note, PlainIntake
from .marks import LedgerClient, MarkKind

MAX_WORK_S = 60.0
ANSWERS_S = 5.0
"""Seconds, after the last order is done, for requests that are still being read to be answered."""
SHUTDOWN_TIMEOUT_S = 5.0
"""Seconds after that for answers to reach their clients."""

logger = logging.getLogger("orders")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Mode(StrEnum):
    """What the service does about its own end."""

    PLAIN = "plain"
    GRACEFUL = "graceful"
    EBBTIDE = "ebbtide"


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks for."""

    id: str
    work_s: float

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read a request.

        Raises:
            ValueError: Names the field and what it must be.
        """
        if not isinstance(document, dict):
            raise ValueError("order: must be a JSON object")  # noqa: TRY004 (the client's mistake, not ours)
        identity, work_s = document.get("id"), document.get("work_s")
        if not isinstance(identity, str) or not identity:
            raise ValueError(f"id: must be a text that is not empty, not {identity!r}")
        if isinstance(work_s, bool) or not isinstance(work_s, int | float) or not 0 < work_s <= MAX_WORK_S:
            raise ValueError(f"work_s: must be a number of seconds above 0 and up to {MAX_WORK_S:g}, not {work_s!r}")
        return cls(identity, float(work_s))


class OrderService:
    """The HTTP half: takes orders while the intake lets it."""

    def __init__(self, intake: Intake, ledger: LedgerClient) -> None:
        self._intake = intake
        self._ledger = ledger
        self._leaving = False
        self._open = 0
        self._answered = asyncio.Event()
        self._answered.set()

    def application(self) -> web.Application:
        """Return the routes."""
        application = web.Application(middlewares=[self._count, self._close_connections_when_leaving])
        application.router.add_post("/orders", self.take_order, expect_handler=self._ask_for_order)
        application.router.add_get("/ready", self.ready)
        return application

    async def answer_all(self) -> None:
        """Ask for no order any more, and return when every request has its answer."""
        self._leaving = True
        await self._answered.wait()

    async def ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._intake.ready else 503)

    async def take_order(self, request: web.Request) -> web.Response:
        try:
            order = Order.from_json(await request.json())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        try:
            task = self._intake.admit(self._fulfil(order), name=order.id)
        except IntakeClosed as closed:
            return self._refusal(closed)
        # A client that goes away does not take its order along.
        await asyncio.shield(task)
        return web.json_response({"id": order.id})

    async def _fulfil(self, order: Order) -> None:
        execution = uuid.uuid4().hex
        await self._ledger.write(MarkKind.STARTED, order.id, execution)
        await asyncio.sleep(order.work_s)
        await self._ledger.write(MarkKind.COMPLETED, order.id, execution)

    async def _ask_for_order(self, request: web.Request) -> web.StreamResponse | None:
        """Answer `Expect: 100-continue`: a client that was not asked for its order may send it elsewhere."""
        if self._leaving:
            return self._refusal(IntakeClosed(retry_after_s=1.0))
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    @staticmethod
    def _refusal(closed: IntakeClosed) -> web.Response:
        headers = {"Retry-After": f"{closed.retry_after_s:.0f}", "Connection": "close"}
        return web.json_response({"error": str(closed)}, status=503, headers=headers)

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._open += 1
        self._answered.clear()
        try:
            return await handler(request)
        finally:
            self._open -= 1
            if not self._open:
                self._answered.set()

    @web.middleware
    async def _close_connections_when_leaving(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if not self._intake.ready:
            response.force_close()
        return response


def choose_intake(mode: Mode, note: Note) -> Intake:
    """Return the intake of a mode; only the mode `ebbtide` imports the library."""
    match mode:
        case Mode.PLAIN:
            return PlainIntake()
        case Mode.GRACEFUL:
            return GracefulIntake(note)
        case Mode.EBBTIDE:
            from .managed import ManagedIntake

            return ManagedIntake(note)


async def serve(mode: Mode, host: str, port: int, ledger_url: str, pod: str) -> None:
    """Run the service until its intake says that the process is to end."""
    async with LedgerClient(ledger_url, pod) as ledger, choose_intake(mode, ledger.note) as intake:
        service = OrderService(intake, ledger)
        runner = web.AppRunner(
            service.application(), handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
            logger.info("%s takes orders on %s:%d, mode %s", pod, host, port, mode)
            await intake.wait_exit()
            await site.stop()
            # From its clean-up on, aiohttp reads nothing any more: who still sends an order would wait, and never know.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWERS_S):
                    await service.answer_all()
        finally:
            await runner.cleanup()
    logger.info("%s is done", pod)


def parse_arguments(argv: list[str] | None, environment: Mapping[str, str]) -> argparse.Namespace:
    """Read flags, whose defaults come from ORDERS_MODE, ORDERS_PORT, ORDERS_LEDGER and POD_NAME."""
    parser = argparse.ArgumentParser(prog="orders", description="Take orders over HTTP.")
    parser.add_argument("--mode", type=Mode, choices=list(Mode), default=environment.get("ORDERS_MODE", Mode.PLAIN))
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 (a pod is reached from outside)
    parser.add_argument("--port", type=int, default=environment.get("ORDERS_PORT", "8080"))
    parser.add_argument("--ledger", default=environment.get("ORDERS_LEDGER", "http://127.0.0.1:8090"))
    parser.add_argument("--pod", default=environment.get("POD_NAME", f"local-{os.getpid()}"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the service as a process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    arguments = parse_arguments(argv, os.environ)
    asyncio.run(serve(arguments.mode, arguments.host, arguments.port, arguments.ledger, arguments.pod))


if __name__ == "__main__":
    main()
