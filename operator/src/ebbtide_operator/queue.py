"""A work queue keyed by workload: wakes are merged, no key is worked on twice at once, failures wait longer each time.

Level-triggered: an item carries no event, only the name of what to look at.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_RETRY_S = 0.05
LONGEST_RETRY_S = 30.0


class WorkQueue(Generic[Key]):
    """Run `work(key)` for every key that was woken, `concurrency` keys at a time.

    `work` returns the seconds after which to look again without being woken, or None. Where it raises, the key is
    tried again after an exponential back-off with jitter (50 ms to 30 s); `on_error(key, error)` is told. Works on one
    key begin `spacing_s` seconds apart at least: what wakes it in a burst is looked at together.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        *,
        concurrency: int = 8,
        spacing_s: float = 0.0,
        on_error: Callable[[Key, Exception], None] = lambda _key, _error: None,
    ) -> None:
        self._work = work
        self._concurrency = concurrency
        self._spacing_s = spacing_s
        self._on_error = on_error
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = 0
        self._busy: dict[Key, float] = {}
        self._began: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Return how many keys wait, delayed ones included."""
        return len(self._due)

    @property
    def depth(self) -> int:
        """How many keys are due and not begun."""
        now = asyncio.get_running_loop().time()
        return sum(due <= now for due in self._due.values())

    @property
    def longest_s(self) -> float:
        """Seconds for which the oldest work under way has been running."""
        now = asyncio.get_running_loop().time()
        return max((now - began for began in self._busy.values()), default=0.0)

    def wake(self, key: Key, after_s: float = 0.0) -> None:
        """Ask for a key to be looked at, at the latest in `after_s` seconds; an earlier wake stands.

        A key that is being worked on is looked at again after that: its gathering may have missed what woke it.
        """
        due = max(asyncio.get_running_loop().time() + after_s, self._began.get(key, 0.0) + self._spacing_s)
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled; what is being worked on is cancelled too."""
        async with asyncio.TaskGroup() as workers:
            while True:
                # Cleared before looking: a wake that comes while we look must not be lost.
                self._changed.clear()
                while len(self._busy) < self._concurrency and (key := self._next()) is not None:
                    self._busy[key] = self._began[key] = asyncio.get_running_loop().time()
                    workers.create_task(self._work_on(key))
                await self._wait()

    def _next(self) -> Key | None:
        now = asyncio.get_running_loop().time()
        postponed: list[tuple[float, int, Key]] = []
        found: Key | None = None
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            due, _, key = entry
            if self._due.get(key) != due:
                continue  # an earlier wake replaced this one
            if key in self._busy:
                postponed.append(entry)
                continue
            del self._due[key]
            found = key
            break
        for entry in postponed:
            heapq.heappush(self._heap, entry)
        return found

    async def _wait(self) -> None:
        waiting = [due for due, _, key in self._heap if key not in self._busy and self._due.get(key) == due]
        if len(self._busy) >= self._concurrency or not waiting:
            await self._changed.wait()
            return
        delay = min(waiting) - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(delay, 0)):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _work_on(self, key: Key) -> None:
        try:
            again_s = await self._work(key)
        except Exception as error:  # noqa: BLE001 (one workload's failure must not end the others)
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            self._on_error(key, error)
            longest = min(FIRST_RETRY_S * 2 ** (failures - 1), LONGEST_RETRY_S)
            self.wake(key, longest * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
        else:
            self._failures.pop(key, None)
            if again_s is not None:
                self.wake(key, again_s)
            elif key not in self._due:
                del self._began[key]
        finally:
            self._busy.pop(key, None)
            self._changed.set()
