"""An honest client: asks again only where it is certain that nothing was begun."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import aiohttp

from .accounts import Attempt, OrderRecord, Outcome

ACCEPT_TIMEOUT_S = 5.0
"""Seconds to get a connection; an attempt that has none was never seen by the service."""
ANSWER_MARGIN_S = 30.0
"""Seconds beyond the work itself that the client waits for an answer."""
GIVE_UP_S = 30.0
"""Seconds after which an order that is only ever refused is given up."""
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0


class Client:
    """Place orders with one service.

    Each attempt has a connection of its own, so that the Service spreads them over its pods. It sends
    `Expect: 100-continue` (RFC 9110, 10.1.1): the service gets the order only after it said that it is there to take
    it. Before that moment any failure is a refusal; after it, only a 503 is.

    Args:
        session: One that closes connections after use.
        url: Where orders are placed.
        clock: Returns Unix time in seconds.
        rng: Spreads retries.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self._session = session
        self._url = url
        self._clock = clock
        self._rng = rng

    async def place(self, order: OrderRecord) -> None:
        """Place one order, and write down each attempt in its record.

        A retry goes to another pod (the refusing one has left the Service or is about to), so it does not wait for the
        Retry-After of the pod that refused.
        """
        delay_s = FIRST_RETRY_S
        while True:
            at = self._clock()
            outcome = await self._attempt(order)
            ended_at = self._clock()
            order.attempts.append(Attempt(at, ended_at, outcome))
            if outcome is not Outcome.REFUSED or ended_at - order.sent_at > GIVE_UP_S:
                order.settled_at = ended_at
                return
            await asyncio.sleep(delay_s * self._rng.uniform(0.5, 1.5))
            delay_s = min(delay_s * 2, LAST_RETRY_S)

    async def _attempt(self, order: OrderRecord) -> Outcome:
        handed_over = False

        async def body() -> AsyncIterator[bytes]:
            nonlocal handed_over
            handed_over = True
            yield b'{"id": "%s", "work_s": %.3f}' % (order.id.encode(), order.work_s)

        timeout = aiohttp.ClientTimeout(total=order.work_s + ANSWER_MARGIN_S, sock_connect=ACCEPT_TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                self._url, data=body(), headers=headers, expect100=True, timeout=timeout
            ) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return Outcome.CUT if handed_over else Outcome.REFUSED
        if response.status == 503:
            return Outcome.REFUSED
        return Outcome.ANSWERED if response.status == 200 else Outcome.CUT
