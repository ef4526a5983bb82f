"""The loop that keeps a watch going over broken connections: one for every way to etcd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from ebbtide.etcd.endpoints import Backoff
from ebbtide.etcd.errors import Compacted, EtcdError, Unauthenticated
from ebbtide.etcd.messages import Changed, Delete, Put, RangeResult, Removed, Resync
from ebbtide.etcd.wire import WatchAnswer, WatchTarget
from ebbtide_operator.store.lanes import Answers, Inbox, Lane, Patience, Silence, Watch

STEADY_S = 5.0
"""A connection that lived this long, or told something, was a good one: its end is a first failure again."""
RETRY_MOST_S = 0.25
"""Longest pause between two tries. Short: a handful of replicas is no stampede, and what pods say waits behind it."""

Changes = Sequence[Changed | Removed | Resync]

logger = logging.getLogger(__name__)


class Follower:
    """Open watches, and open them again where they ended, or where they do not tell what we wrote ourselves.

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
        self._patience = Patience(confirm_s, inactivity_s)
        self._watches: set[Watch] = set()

    @property
    def connected(self) -> bool:
        """True where every watch is confirmed by the store."""
        return all(watch.connected for watch in self._watches)

    @property
    def watching(self) -> bool:
        """True where there is a watch, and all are confirmed by the store."""
        return bool(self._watches) and self.connected

    @property
    def cluster(self) -> int:
        """Id of the store that is watched; 0: not known."""
        return max((watch.resumption.cluster for watch in self._watches), default=0)

    def wrote(self, then: Sequence[Put | Delete], revision: int) -> None:
        """Take note of a transaction of our own that was applied: watches have to tell it.

        Only what was put counts: of a deletion it is not known whether there was something to delete, and the revision
        in the answer may then be that of others' writes.
        """
        for watch in self._watches:
            if any(isinstance(one, Put) and one.key.startswith(watch.prefix) for one in then):
                watch.wrote(revision)

    async def follow(self, prefix: str, after: int) -> AsyncGenerator[Changes, None]:
        """Yield what happens under a prefix after a revision; see `ports.Store`.

        Close it (`contextlib.aclosing`) when done: its connection ends with it.
        """
        watch = Watch(prefix, after)
        backoff = Backoff(self._chance, most_s=RETRY_MOST_S)
        relist = listed = refused = False
        self._watches.add(watch)
        try:
            while True:
                opened_at = time.monotonic()
                try:
                    if relist:
                        listed = True
                        batch = watch.resumption.relist([await self._read(prefix)], time.monotonic())
                        watch.doubt.began_anew(watch.resumption.revision)
                        relist = False
                        yield batch.changes
                    async with contextlib.aclosing(self._once(watch)) as batches:
                        async for changes in batches:
                            listed = refused = False
                            backoff.reset()
                            yield changes
                except Compacted:
                    relist = True
                    if listed:
                        await asyncio.sleep(backoff.next_s())
                except Silence:
                    continue  # a fresh connection settles it, and resumes without a gap
                except EtcdError as error:
                    if watch.connected:
                        logger.warning("store.watch.lost", extra={"error": str(error)})
                    watch.connected = False
                    if time.monotonic() - opened_at > STEADY_S:
                        backoff.reset()
                    before, refused = refused, isinstance(error, Unauthenticated)
                    # A store that forgot our login is there: the next try brings another, and needs no pause.
                    if before or not refused:
                        await asyncio.sleep(backoff.next_s())
        finally:
            self._watches.remove(watch)

    async def _once(self, watch: Watch) -> AsyncGenerator[Changes, None]:
        """Follow a connection to its end, or to the end of the one that turned out to be better."""
        now = asyncio.get_running_loop().time
        inbox: Inbox = asyncio.Queue(1)
        (target,) = watch.resumption.begin()
        lanes = [self._open(target, inbox)]
        watch.doubt.excuse(now())
        try:
            while True:
                said = await watch.next(inbox)
                if said is None:
                    watch.doubt.raised(now())
                    # What an earlier doubt opened, and what is silent too, makes room.
                    await _close(lanes, keep=lanes[:1])
                    (target,) = watch.resumption.beside()
                    lanes.append(self._open(target, inbox))
                    continue
                lane, received = said
                if lane not in lanes:
                    continue
                before = watch.resumption.revision
                try:
                    if isinstance(received, Exception):
                        raise received
                    for answer in received:
                        changes = self._take(watch, lane, answer)
                        if changes:
                            yield changes
                except Compacted:
                    raise
                except EtcdError as error:
                    if error is not received:
                        await lane.close(error)
                    if len(lanes) == 1:
                        raise
                    await _close(lanes, keep=[one for one in lanes if one is not lane])
                    watch.connected = lanes[0].confirmed
                    continue
                if lane is lanes[0]:
                    # It lives, however slow: two that tell the same are one too many.
                    await _close(lanes, keep=[lane])
                elif watch.resumption.revision > before:
                    logger.warning("store.watch.silent", extra={"revision": before})
                    watch.doubt.right()
                    await _close(lanes, keep=[lane])
                else:
                    continue
                watch.connected = watch.connected or lane.confirmed
                watch.doubt.heard(watch.resumption.revision, now())
        finally:
            await _close(lanes, keep=[])

    def _take(self, watch: Watch, lane: Lane, answer: WatchAnswer) -> Changes:
        batch = watch.resumption.take(answer, time.monotonic(), lane.url)
        return () if batch is None else batch.changes

    def _open(self, target: WatchTarget, inbox: Inbox) -> Lane:
        return Lane(self._connect(target), self._patience, inbox)


async def _close(lanes: list[Lane], *, keep: Sequence[Lane]) -> None:
    closing = [lane for lane in lanes if lane not in keep]
    lanes[:] = keep
    for lane in closing:
        await lane.close()
