"""A watch in a thread, by the synchronous client or the operator's store, whose changes a test can wait for."""

import asyncio
import contextlib
import threading
import time
from typing import Any

from ebbtide.etcd import Changed, EtcdClient, Removed, Resync, Watch
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway

PATIENCE_S = 40.0


def collect(watch: Watch, changes: list[Any]) -> None:
    """Gather all that a watch yields; for a thread."""
    for batch in watch:
        changes.extend(batch.changes)


class SyncWatching:
    def __init__(self, urls: list[str], prefix: str, *, inactivity_s: float = 45.0, timeout_s: float = 2.0) -> None:
        self.changes: list[Any] = []
        self._stop = threading.Event()
        self._client = EtcdClient(urls, timeout_s=timeout_s)
        self.watch = self._client.watch([prefix], stop=self._stop, prefix=True, inactivity_s=inactivity_s)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.until(lambda: self.watch.connected)

    @property
    def connected(self) -> bool:
        return self.watch.connected

    def _run(self) -> None:
        for batch in self.watch:
            self.changes += batch.changes

    def until(self, condition: Any) -> None:
        wait_until(condition)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the watch does not end"
        self._client.close()


class StoreWatching:
    """The same, by an adapter of the operator's store port in a loop of its own, after a list as the mirror does it."""

    adapter: type[Gateway] | type[Etcd3] = Gateway

    def __init__(self, urls: list[str], prefix: str, *, inactivity_s: float = 20.0, timeout_s: float = 2.0) -> None:
        self.changes: list[Any] = []
        self._arguments = (urls, prefix, inactivity_s, timeout_s)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        self.until(lambda: self.connected)

    @property
    def connected(self) -> bool:
        return self.store.watching

    async def _run(self) -> None:
        urls, prefix, inactivity_s, timeout_s = self._arguments
        self.store = self.adapter(urls, timeout_s=timeout_s, inactivity_s=inactivity_s)
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        key_values, revision = await self.store.range(prefix)
        self.changes.append(Resync(key_values, revision))
        task = asyncio.create_task(self._collect(prefix, revision))
        self._ready.set()
        await self._end.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.store.close()

    async def _collect(self, prefix: str, revision: int) -> None:
        async with contextlib.aclosing(self.store.watch(prefix, revision)) as batches:
            async for batch in batches:
                self.changes += batch

    def until(self, condition: Any) -> None:
        wait_until(condition)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the watch does not end"


class GatewayWatching(StoreWatching):
    adapter = Gateway


class Etcd3Watching(StoreWatching):
    adapter = Etcd3


def wait_until(condition: Any) -> Any:
    """Return what a condition answers, once that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
    return answer


def state_of(changes: list[Changed | Removed | Resync]) -> dict[str, bytes]:
    """Return what somebody knows who followed all changes."""
    known: dict[str, bytes] = {}
    for change in changes:
        match change:
            case Resync():
                known = {item.key: item.value for item in change.key_values}
            case Changed():
                known[change.key_value.key] = change.key_value.value
            case Removed():
                known.pop(change.key, None)
    return known
