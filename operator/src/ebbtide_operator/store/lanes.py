"""The connections of one watch: one as a rule, two while the first is doubted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from ebbtide.etcd.errors import EtcdError, TimedOut
from ebbtide.etcd.resume import Resumption
from ebbtide.etcd.wire import WatchAnswer
from ebbtide_operator.store.doubt import Doubt

LATE_S = 0.05
"""A timer that is late by more says that this process was busy, and nothing about the connection."""


class Answers(Protocol):
    """What etcd says over one connection of a watch."""

    @property
    def url(self) -> str:
        """Who says it."""

    async def next(self, patience_s: float) -> Sequence[WatchAnswer]:
        """Wait for the next answers.

        Raises:
            TimedOut: None came within `patience_s` seconds; the connection is of no further use.
            EtcdError: The connection broke, or what came makes no sense.
        """


class Silence(EtcdError):
    """A connection that delivered has been quiet for long: it may be dead, or there is nothing to say."""


class Patience(NamedTuple):
    """How long, in seconds, a connection may take to confirm a watch, and to say anything after that."""

    confirm_s: float
    inactivity_s: float


class Lane:
    """One connection, read by a task of its own."""

    def __init__(self, connection: AbstractAsyncContextManager[Answers], patience: Patience, inbox: Inbox) -> None:
        self.url = ""
        self.confirmed = False
        """True once the store confirmed the watch."""
        self._connection = connection
        self._patience = patience
        self._inbox = inbox
        self._blame: EtcdError | None = None
        self._task = asyncio.create_task(self._run())

    async def close(self, blame: EtcdError | None = None) -> None:
        """End the connection.

        Args:
            blame: What is wrong with what it said; whoever opened it draws his conclusions: another login or endpoint.
        """
        self._blame = blame
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._read()
        except Exception as error:  # noqa: BLE001 (passed on, and raised there)
            # Whoever follows the watch decides, also about a mistake of ours.
            if error is not self._blame:
                await self._inbox.put((self, error))

    async def _read(self) -> None:
        async with self._connection as answers:
            self.url = answers.url
            try:
                while True:
                    received = await self._next(answers)
                    self.confirmed = self.confirmed or any(answer.created for answer in received)
                    await self._inbox.put((self, received))
            except asyncio.CancelledError:
                if self._blame is not None:
                    raise self._blame from None
                raise

    async def _next(self, answers: Answers) -> Sequence[WatchAnswer]:
        try:
            return await answers.next(self._patience.inactivity_s if self.confirmed else self._patience.confirm_s)
        except TimedOut as error:
            if self.confirmed:
                raise Silence(str(error)) from error
            raise


Inbox = asyncio.Queue[tuple[Lane, Sequence[WatchAnswer] | Exception]]


class Watch:
    """What is known of one watch over all its connections.

    Attributes:
        prefix: What is watched.
        connected: Whether the store has confirmed it.
    """

    def __init__(self, prefix: str, after: int) -> None:
        self.prefix = prefix
        self.connected = False
        # No time for a member that lags: where it is behind, a list from the majority follows, and tells.
        self.resumption = Resumption([prefix], prefix=True, after=after, proof_s=0.0)
        self.doubt = Doubt(after)
        self._limit: asyncio.Timeout | None = None

    def wrote(self, revision: int) -> None:
        """Take note of a write of our own that this watch has to tell."""
        self.doubt.wrote(revision, asyncio.get_running_loop().time())
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self.doubt.due_at)

    async def next(self, inbox: Inbox) -> tuple[Lane, Sequence[WatchAnswer] | Exception] | None:
        """Wait for what a connection says next; None: it is time to doubt it."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(self.doubt.due_at) as self._limit:
                    return await inbox.get()
            except TimeoutError:
                due_at, now = self.doubt.due_at, loop.time()
                if due_at is None or now < due_at or not inbox.empty():
                    continue
                if now - due_at <= LATE_S:
                    return None
                self.doubt.excuse(now)
            finally:
                self._limit = None
