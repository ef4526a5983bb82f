"""What pods tell the ledger, and the client that tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import aiohttp

WRITE_TIMEOUT_S = 5.0
"""Seconds for one try to write a mark."""
GIVE_UP_S = 60.0
"""Seconds after which a mark that could not be written is an error."""


class MarkKind(StrEnum):
    """What happened in the pod."""

    STARTED = "started"
    """Work on an order began."""
    COMPLETED = "completed"
    """Work on an order is done: the effect that must happen once."""
    TOLD = "told"
    """The pod learned that it has to go: SIGTERM, or an order to drain."""
    CLOSED = "closed"
    """The pod takes no more orders."""
    RETURNED = "returned"
    """The pod was told to stay after all, and takes orders again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One line in the ledger. `at` is Unix time in seconds, taken in the pod."""

    kind: MarkKind
    pod: str
    at: float
    order: str = ""
    execution: str = ""
    """Random per time that an order is worked on, so that two of them can be told from one that is written twice."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read a mark.

        Raises:
            ValueError: The kind is unknown.
            TypeError: A field is missing or unknown.
        """
        return cls(**{**document, "kind": MarkKind(document["kind"])})


class LedgerError(Exception):
    """A mark could not be written in time; names the ledger and the last cause."""


class LedgerClient:
    """Write marks of one pod to the ledger.

    Args:
        url: Base URL of the ledger.
        pod: Name of this pod.
        clock: Returns Unix time in seconds.
    """

    def __init__(self, url: str, pod: str, clock: Callable[[], float] = time.time) -> None:
        self._url = f"{url.rstrip('/')}/marks"
        self._pod = pod
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WRITE_TIMEOUT_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._background:
            await asyncio.wait(self._background, timeout=WRITE_TIMEOUT_S)
        if self._session is not None:
            await self._session.close()

    def note(self, kind: MarkKind) -> None:
        """Write a mark about the pod itself in the background, stamped with the present time."""
        task = asyncio.get_running_loop().create_task(self._write(Mark(kind=kind, pod=self._pod, at=self._clock())))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def write(self, kind: MarkKind, order: str, execution: str) -> None:
        """Write a mark about an order, and return when the ledger has it.

        Raises:
            LedgerError: The ledger did not take it within GIVE_UP_S.
        """
        await self._write(Mark(kind=kind, pod=self._pod, at=self._clock(), order=order, execution=execution))

    async def _write(self, mark: Mark) -> None:
        if self._session is None:
            raise RuntimeError("LedgerClient: use it as an async context manager")
        document = asdict(mark)
        delay_s = 0.05
        give_up_at = self._clock() + GIVE_UP_S
        while True:
            try:
                async with self._session.post(self._url, json=document, raise_for_status=True):
                    return
            except (aiohttp.ClientError, TimeoutError) as error:
                if self._clock() + delay_s > give_up_at:
                    raise LedgerError(f"{self._url}: {mark.kind} of {mark.order or mark.pod}: {error!r}") from error
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 2.0)
