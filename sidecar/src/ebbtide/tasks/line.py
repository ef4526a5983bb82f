"""Those who wait: served in order, woken from any thread, and never forgotten."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

logger = logging.getLogger("ebbtide")


class Line:
    """A line of coroutines, each of which asks again when it is woken or its time is over."""

    def __init__(self) -> None:
        self.queue: deque[asyncio.Future[None]] = deque()
        """Who waits; public for its truth, which is asked at each end of a task."""

    def __len__(self) -> int:
        return len(self.queue)

    async def join(self, timeout_s: float, *, in_front: bool = False) -> None:
        """Wait to be woken, so many seconds at most; `in_front`: of all who wait, since it was first already."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if in_front:
            self.queue.appendleft(waiter)
        else:
            self.queue.append(waiter)
        asks_again = False
        try:
            await asyncio.wait({waiter}, timeout=timeout_s)
            asks_again = True
        finally:
            taken = waiter.done()
            if not taken:
                try:
                    self.queue.remove(waiter)
                except ValueError:  # somebody took it out and is about to wake it
                    taken = True
                waiter.cancel()
            if taken and not asks_again:
                self.wake_one()  # cancelled: what it was woken for is another's

    def wake_one(self) -> None:
        """Let the first one ask again."""
        try:
            waiter = self.queue.popleft()
        except IndexError:
            return
        loop = waiter.get_loop()
        if loop is _running_loop():
            _release(waiter)
            return
        try:
            loop.call_soon_threadsafe(_release, waiter)
        except RuntimeError:
            logger.debug("ebbtide: the event loop of somebody who waits is closed")

    def wake_all(self) -> None:
        """Let everybody ask again who waits now."""
        for _ in range(len(self.queue)):
            self.wake_one()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
