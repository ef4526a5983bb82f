"""One open watch of a pod, told from the mirror."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from ebbtide.etcd.wire import WatchTarget
from ebbtide_operator.serve import relay_wire
from ebbtide_operator.serve.relay_wire import Denial
from ebbtide_operator.store.mirror import Mirror, Subscription

WRITE_S = 10.0
"""How long a pod may take to read a line."""


class Watcher:
    """Write the lines of one watch connection, which may watch several keys; `cluster` is the id of the store."""

    def __init__(
        self,
        mirror: Mirror,
        request: web.Request,
        response: web.StreamResponse,
        subscription: Subscription,
        targets: list[WatchTarget],
        cluster: int,
    ) -> None:
        self.wrote_at = time.monotonic()
        self._mirror = mirror
        self._request = request
        self._response = response
        self._subscription = subscription
        self._targets = targets
        self._cluster = cluster
        self._next = {target.watch_id: target.start_revision for target in targets}
        self._denial: Denial | None = None

    async def run(self, over: Callable[[], bool]) -> None:
        """Tell what happens until it is `over`, which is asked at each wake.

        Raises:
            TimeoutError: The pod does not read.
            ConnectionError: The pod is gone.
            Denial: It was cut off.
        """
        revision = self._mirror.revision
        for target in self._targets:
            self._next[target.watch_id] = target.start_revision or revision + 1
        created = (relay_wire.encode_created(one.watch_id, revision, self._cluster) for one in self._targets)
        await self._write(b"".join(created))
        changed = {target.key for target in self._targets}
        while not over():
            if self._denial is not None:
                raise self._denial
            # No wait between looking and encoding: a progress line says that nothing was left out.
            lines = [line for target in self._targets if target.key in changed for line in self._news(target)]
            if self._subscription.ended:
                lines = [
                    relay_wire.encode_compacted(target.watch_id, self._mirror.revision) for target in self._targets
                ]
            elif not changed:
                revision = self._mirror.revision
                lines = [relay_wire.encode_progress(target.watch_id, revision) for target in self._targets]
            if lines:
                await self._write(b"".join(lines))
            if self._subscription.ended:
                return
            await self._subscription.wait()
            changed = set(self._subscription.take())

    def wake(self) -> None:
        """Let it look again; where there is no news it says that it lives."""
        self._subscription.wake()

    def cut(self, denial: Denial) -> None:
        """End it for what the pod did."""
        self._denial = denial
        if self._request.protocol.writing_paused:
            self.abort()
        self._subscription.wake()

    async def answer(self, lease: int, *, alive: bool) -> None:
        """Say what became of a lease that the pod beat for; never waits."""
        if self._request.protocol.writing_paused:
            # Who beats and does not read would fill our memory.
            self.abort()
            return
        self.wrote_at = time.monotonic()
        try:
            # The write that fills the last buffer would wait for the pod, and with it all whose beats are looked at.
            async with asyncio.timeout(0):
                await self._response.write(relay_wire.encode_kept(lease, self._mirror.revision, alive=alive))
        except TimeoutError:
            self.abort()
        except ConnectionError:
            pass

    def abort(self) -> None:
        """Let go of the connection without the courtesies that would not be read either."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def _news(self, target: WatchTarget) -> list[bytes]:
        event = self._mirror.since(target.key, self._next[target.watch_id])
        if event is None:
            return []
        self._next[target.watch_id] = event.revision + 1
        revision = max(event.revision, self._mirror.revision)
        return [relay_wire.encode_event(target.watch_id, revision, event)]

    async def _write(self, data: bytes) -> None:
        self.wrote_at = time.monotonic()
        async with asyncio.timeout(WRITE_S):
            await self._response.write(data)
