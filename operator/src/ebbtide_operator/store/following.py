"""The loop that keeps a watch going over broken connections: one for every way to etcd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ebbtide.etcd.endpoints import Backoff
from ebbtide.etcd.errors import Compacted, EtcdError, TimedOut
from ebbtide.etcd.messages import Changed, RangeResult, Removed, Resync
from ebbtide.etcd.resume import Resumption
from ebbtide.etcd.wire import WatchAnswer, WatchTarget

STEADY_S = 5.0
"""A connection that lived this long, or told something, was a good one: its end is a first failure again."""
RETRY_MOST_S = 0.25
"""Longest pause between two tries. Short: a handful of replicas is no stampede, and what pods say waits behind it."""

logger = logging.getLogger(__name__)


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


class Follower:
    """Open watches, and open them again where they ended.

    Args:
        connect: Opens a connection for one watch.
        read: Lists a prefix.
        chance: Spreads retries.
        confirm_s: Seconds that the store may take to confirm a watch.
        inactivity_s: Seconds of silence after which a watch connects anew.
    """

    def __init__(
        self,
        connect: Callable[[WatchTarget], AbstractAsyncContextManager[Answers]],
        read: Callable[[str], Awaitable[RangeResult]],
        chance: random.Random,
        *,
        confirm_s: float,
        inactivity_s: float,
    ) -> None:
        self._connect = connect
        self._read = read
        self._chance = chance
        self._confirm_s = confirm_s
        self._inactivity_s = inactivity_s
        self._connected: dict[Resumption, bool] = {}

    @property
    def connected(self) -> bool:
        """True where every watch is confirmed by the store."""
        return all(self._connected.values())

    @property
    def watching(self) -> bool:
        """True where there is a watch, and all are confirmed by the store."""
        return bool(self._connected) and self.connected

    async def follow(self, prefix: str, after: int) -> AsyncGenerator[Sequence[Changed | Removed | Resync], None]:
        """Yield what happens under a prefix after a revision; see `ports.Store`.

        Close it (`contextlib.aclosing`) when done: its connection ends with it.
        """
        # No time for a member that lags: where it is behind, a list from the majority follows, and tells.
        resumption = Resumption([prefix], prefix=True, after=after, proof_s=0.0)
        backoff = Backoff(self._chance, most_s=RETRY_MOST_S)
        relist = listed = False
        self._connected[resumption] = False
        try:
            while True:
                opened_at = time.monotonic()
                try:
                    if relist:
                        listed = True
                        batch = resumption.relist([await self._read(prefix)], time.monotonic())
                        relist = False
                        yield batch.changes
                    async with contextlib.aclosing(self._once(resumption)) as batches:
                        async for changes in batches:
                            listed = False
                            backoff.reset()
                            yield changes
                except Compacted:
                    relist = True
                    if listed:
                        await asyncio.sleep(backoff.next_s())
                except _Silence:
                    continue  # a fresh connection settles it, and resumes without a gap
                except EtcdError as error:
                    if self._connected[resumption]:
                        logger.warning("store.watch.lost", extra={"error": str(error)})
                    self._connected[resumption] = False
                    if time.monotonic() - opened_at > STEADY_S:
                        backoff.reset()
                    await asyncio.sleep(backoff.next_s())
        finally:
            del self._connected[resumption]

    async def _once(self, resumption: Resumption) -> AsyncGenerator[Sequence[Changed | Removed | Resync], None]:
        (target,) = resumption.begin()
        async with self._connect(target) as answers:
            while True:
                confirmed = resumption.confirmed
                try:
                    received = await answers.next(self._inactivity_s if confirmed else self._confirm_s)
                except TimedOut:
                    if confirmed:
                        raise _Silence from None
                    raise
                for answer in received:
                    batch = resumption.take(answer, time.monotonic(), answers.url)
                    if resumption.confirmed:
                        self._connected[resumption] = True
                    if batch is not None:
                        yield batch.changes


class _Silence(Exception):
    """A connection that delivered has been quiet for long: it may be dead, or there is nothing to say."""
