"""What a fault cost: a writer that remembers what the store acknowledged, and a reader that counts what it was told."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ebbtide.etcd import Changed, Delete, EtcdClient, EtcdError, KeyValue, Put, Removed, Resync
from ebbtide_operator.ports import Store, StoreUnavailable

PREFIX = "/w/"
PAUSE_S = 0.004
"""Between two writes: about 150 a second."""


@dataclass(frozen=True)
class Write:
    """One acknowledged write; times are monotonic."""

    key: str
    passing: bool
    """Deleted soon after: whoever missed both may learn from a list that nothing is there."""
    began_at: float
    acknowledged_at: float


class Writer:
    """Write one new key after the other, and delete some, in a thread; what fails is not repeated."""

    def __init__(self, urls: list[str], credentials: dict[str, str] | None = None) -> None:
        self.writes: list[Write] = []
        self.failures = 0
        self._urls = urls
        self._credentials: dict[str, Any] = dict(credentials or {})
        self._stop = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer")

    def start(self) -> None:
        self._thread.start()

    def pause(self) -> None:
        """Return once nothing is being written."""
        self._running.clear()
        self._idle.wait()

    def resume(self) -> None:
        self._idle.clear()
        self._running.set()

    def stop(self) -> None:
        self._stop.set()
        self._running.set()
        if self._thread.ident is not None:
            self._thread.join()

    def after(self, moment: float) -> Write | None:
        """Return the first write to last that was begun after a moment."""
        later = itertools.takewhile(lambda write: write.began_at > moment, reversed(self.writes))
        lasting = [write for write in later if not write.passing]
        return lasting[-1] if lasting else None

    def held(self) -> tuple[KeyValue, ...]:
        """Return what the store holds."""
        with EtcdClient(self._urls, timeout_s=5, **self._credentials) as client:
            return client.range(PREFIX).key_values

    def _run(self) -> None:
        number = 0
        with EtcdClient(self._urls, timeout_s=0.5, **self._credentials) as client:
            while not self._stop.is_set():
                if not self._running.is_set():
                    self._idle.set()
                    self._running.wait()
                number += 1
                key = f"{PREFIX}{number:07}"
                began_at = time.monotonic()
                try:
                    client.put(key, b"x" * 64)
                    self.writes.append(Write(key, number % 10 == 5, began_at, time.monotonic()))
                    if number % 10 == 0:
                        client.delete(f"{PREFIX}{number - 5:07}")
                except EtcdError:
                    self.failures += 1
                    self._stop.wait(0.01)
                else:
                    self._stop.wait(PAUSE_S)


class OwnWriter(Writer):
    """The same through the very store that is under test, in its loop: as the operator writes."""

    def __init__(self, store: Store, urls: list[str]) -> None:
        super().__init__(urls)
        self._store = store
        self._ended = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._write())

    def stop(self) -> None:
        """End it; not from its own loop."""
        self._stop.set()
        self._running.set()
        if self._task is not None:
            self._ended.wait()

    async def _write(self) -> None:
        try:
            number = 0
            while not self._stop.is_set():
                if not self._running.is_set():
                    self._idle.set()
                    while not self._running.is_set():  # noqa: ASYNC110 (another thread says so)
                        await asyncio.sleep(PAUSE_S)
                number += 1
                key = f"{PREFIX}{number:07}"
                began_at = time.monotonic()
                try:
                    await self._store.transact([], [Put(key, b"x" * 64)])
                    self.writes.append(Write(key, number % 10 == 5, began_at, time.monotonic()))
                    if number % 10 == 0:
                        await self._store.transact([], [Delete(f"{PREFIX}{number - 5:07}")])
                except StoreUnavailable:
                    self.failures += 1
                await asyncio.sleep(PAUSE_S)
        finally:
            self._ended.set()


class Reader:
    """Follow a store as the operator's mirror does: a list, then a watch.

    It acts on a change once: what it was told by a list and is told again, or told twice, counts as a duplicate.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.state: dict[str, KeyValue] = {}
        self.seen_at: dict[str, float] = {}
        """When each key was first heard of."""
        self.events = 0
        self.duplicates = 0
        self.resyncs = 0
        """Lists that the watch gave in place of history."""
        self.revision = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        key_values, revision = await self.store.range(PREFIX)
        self._replace(Resync(key_values, revision))
        self._task = asyncio.create_task(self._run(revision))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, revision: int) -> None:
        async with contextlib.aclosing(self.store.watch(PREFIX, revision)) as batches:
            async for batch in batches:
                for change in batch:
                    self._take(change)

    def _take(self, change: Changed | Removed | Resync) -> None:
        if isinstance(change, Resync):
            self.resyncs += 1
            self._replace(change)
            return
        self.events += 1
        # Every write has a revision of its own here, so that a watch that tells anything twice goes back.
        if change.revision <= self.revision:
            self.duplicates += 1
        self.revision = max(self.revision, change.revision)
        if isinstance(change, Removed):
            self.state.pop(change.key, None)
        else:
            self.seen_at.setdefault(change.key_value.key, time.monotonic())
            self.state[change.key_value.key] = change.key_value

    def _replace(self, resync: Resync) -> None:
        now = time.monotonic()
        for key_value in resync.key_values:
            self.seen_at.setdefault(key_value.key, now)
        self.state = {key_value.key: key_value for key_value in resync.key_values}
        self.revision = resync.revision


@dataclass
class Count:
    """What one kind of fault did to one adapter, over all rounds."""

    adapter: str
    fault: str
    rounds: int = 0
    written: int = 0
    seen: int = 0
    lost: int = 0
    duplicates: int = 0
    resumed_s: list[float] = field(default_factory=list)
    """Of each round: from the first write that was acknowledged after the fault until it was told."""

    def quantile(self, share: float) -> float:
        ordered = sorted(self.resumed_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    @property
    def row(self) -> str:
        cells = (
            self.adapter,
            self.fault,
            str(self.rounds),
            str(self.written),
            str(self.seen),
            str(self.lost),
            str(self.duplicates),
            f"{self.quantile(0.5) * 1000:.0f} ms",
            f"{self.quantile(0.99) * 1000:.0f} ms",
        )
        return "| " + " | ".join(cells) + " |"


HEAD = (
    "| adapter | fault | runs | written | seen | lost | duplicated | resume p50 | resume p99 |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def told(reader: Reader, write: Write) -> bool:
    """Say whether a reader heard of a write; what a list left out because it is deleted by now was told by that."""
    return write.key in reader.seen_at or (write.passing and reader.resyncs > 0 and write.key not in reader.state)


async def settle(reader: Reader, writer: Writer, *, patience_s: float = 30.0) -> int:
    """Wait until the reader knows what the store holds; return how many writes it never heard of or has wrong.

    The writer must be paused.
    """
    deadline = time.monotonic() + patience_s
    while True:
        actual = await asyncio.to_thread(writer.held)
        lost = len(missing(reader, writer.writes, actual))
        if not lost or time.monotonic() > deadline:
            return lost
        await asyncio.sleep(0.02)


def missing(reader: Reader, writes: Iterable[Write], actual: Iterable[KeyValue]) -> set[str]:
    """Return the keys that a reader never heard of, or has otherwise than the store."""
    unheard = {write.key for write in writes if not told(reader, write)}
    held = {item.key: item for item in actual}
    return unheard | {key for key in held.keys() | reader.state.keys() if held.get(key) != reader.state.get(key)}
