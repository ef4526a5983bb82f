"""Who lets an order in, with Ebbtide: the whole difference to the plain service is in this file."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import ebbtide

from .intake import IntakeClosed, Note, Work
from .marks import MarkKind

OBSERVE_EVERY_S = 0.05


class ManagedIntake:
    """Let the operator say when this pod goes; the library counts the orders and tells it.

    Args:
        note: Told when the pod is to go, when its intake closes, and when it may stay after all.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._runtime = ebbtide.Runtime.from_env()
        self._orders = self._runtime.scope("orders")
        self._observer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._runtime.on_drain(self._drain_began)
        await self._runtime.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runtime.__aexit__(kind, error, trace)
        if self._observer is not None:
            self._observer.cancel()

    @property
    def ready(self) -> bool:
        return self._runtime.ready

    def admit(self, work: Work, name: str) -> asyncio.Task[None]:
        try:
            return self._orders.spawn(work, name=name)
        except ebbtide.Refused as refused:
            raise IntakeClosed(refused.retry_after_s) from refused

    async def wait_exit(self) -> None:
        await self._runtime.wait_exit()

    def _drain_began(self) -> None:
        """Watch the drain for the ledger. Only the demo's figures need this."""
        self._note(MarkKind.TOLD)
        if self._observer is not None:
            self._observer.cancel()
        self._observer = asyncio.get_running_loop().create_task(self._observe())

    async def _observe(self) -> None:
        closed = False
        while self._runtime.draining:
            if not closed and not self._runtime.intake_open:
                closed = True
                self._note(MarkKind.CLOSED)
            await asyncio.sleep(OBSERVE_EVERY_S)
        self._note(MarkKind.RETURNED)
