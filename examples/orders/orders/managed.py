"""Who lets an order in, with Ebbtide: the whole difference to the plain service is in this file."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import ebbtide

from .intake import IntakeClosed, Note, Work


class ManagedIntake:
    """Let the operator say when this pod goes; the library counts the orders and tells it.

    Args:
        note: Told when the pod is to go, when its intake closes, and when it may stay after all.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._runtime = ebbtide.Runtime.from_env()
        self._orders = self._runtime.scope("orders")

    async def __aenter__(self) -> Self:
        await self._runtime.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runtime.__aexit__(kind, error, trace)

    @property
    def ready(self) -> bool:
        return not self._runtime.draining

    def admit(self, work: Work, name: str) -> asyncio.Task[None]:
        try:
            return self._orders.spawn(work, name=name)
        except ebbtide.Refused as refused:
            raise IntakeClosed(refused.retry_after_s) from refused

    async def wait_exit(self) -> None:
        await self._runtime.wait_exit()
