"""Clients of a store that ask at random, side by side, and remember what they were told."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from ebbtide_operator.ports import Compare, Delete, KeyValue, Put, StoreUnavailable
from tests.contract.faults import until
from tests.contract.linearizability import Answer, Held, Operation, Read, Write

LEADER = "/h/leader"
ORDERS = ("/h/orders/1", "/h/orders/2")
REPORTS = ("/h/reports/1", "/h/reports/2")
KEYS = (LEADER, *ORDERS, *REPORTS)
CLIENTS = 6
PAUSE_S = 0.004
MOST_UNKNOWN = 8
"""Writes without an answer in one history: each may have happened anywhere, and orders to try multiply with them."""


class Clients:
    """Six clients, each with an adapter of its own: connections of one do not wait for those of another.

    Each does what the protocol has: reads, reports, orders that compare the epoch that it last saw, and takes the
    leader's key away from whoever has it.
    """

    def __init__(self, connect: Callable[[], Any], seed: int) -> None:
        self.history: list[Operation] = []
        self.answered = 0
        self.failures = 0
        self.unknown = 0
        """Writes that may have happened."""
        self._stores = [connect() for _ in range(CLIENTS)]
        self._chance = random.Random(seed)
        self._values = (b"%d" % number for number in itertools.count())
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(store)) for store in self._stores]

    async def stop(self) -> None:
        """Let every operation end: one that is broken off would be one more without an answer."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        for store in self._stores:
            await store.close()

    async def answers(self, count: int) -> None:
        """Wait for so many answers more."""
        wanted = self.answered + count
        await until(lambda: self.answered >= wanted)

    async def failing(self) -> None:
        """Wait until somebody gets no answer."""
        before = self.failures
        await until(lambda: self.failures > before)

    _stopping = False

    async def _run(self, store: Any) -> None:
        epoch = 0
        while not self._stopping:
            what = self._choose(epoch)
            answer = await self._ask(store, what)
            if what == Read(LEADER):
                epoch = answer.create_revision if isinstance(answer, Held) else 0
            await asyncio.sleep(self._chance.random() * 2 * PAUSE_S)

    def _choose(self, epoch: int) -> Read | Write:
        kind = self._chance.random()
        if kind < 0.35 or self.unknown >= MOST_UNKNOWN:
            return Read(self._chance.choice(KEYS))
        if kind < 0.45:
            return Read(LEADER)
        if kind < 0.65:
            return Write(((self._chance.choice(REPORTS), next(self._values)),))
        fence = ((LEADER, epoch),)
        if kind < 0.9:
            return Write(((self._chance.choice(ORDERS), next(self._values)),), fence)
        # Deletes the key of the leader that was seen; where there was none, leads itself.
        return Write(((LEADER, None if epoch else next(self._values)),), fence)

    async def _ask(self, store: Any, what: Read | Write) -> Answer:
        called_at = time.monotonic()
        try:
            answer = _answer(await _send(store, what))
        except StoreUnavailable as error:
            self.failures += 1
            # What surely did not happen is no part of the history: the adapter's word for it is put to the test.
            if error.uncertain and isinstance(what, Write):
                self.history.append(Operation(what, called_at, known=False))
                self.unknown += 1
            await asyncio.sleep(0.02)
            return None
        self.answered += 1
        self.history.append(Operation(what, called_at, time.monotonic(), answer))
        return answer


async def _send(store: Any, what: Read | Write) -> KeyValue | int | None:
    if isinstance(what, Read):
        found: KeyValue | None = await store.get(what.key)
        return found
    compare = [Compare(key, create_revision=epoch) for key, epoch in what.epochs]
    revision: int | None = await store.transact(compare, _operations(what))
    return revision


def _operations(what: Write) -> Sequence[Put | Delete]:
    return [Delete(key) if value is None else Put(key, value) for key, value in what.values]


def _answer(found: KeyValue | int | None) -> Answer:
    if isinstance(found, KeyValue):
        return Held(found.value, found.create_revision, found.mod_revision)
    return found
