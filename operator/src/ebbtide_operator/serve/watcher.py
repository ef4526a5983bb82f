"""One open watch of a pod, told from the mirror."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from ebbtide.etcd.wire import WatchTarget
from ebbtide_operator.serve import relay_wire
from ebbtide_operator.store.mirror import Mirror, Subscription

WRITE_S = 10.0
"""How long a pod may take to read a line."""
PROGRESS_S = 15.0
"""How often a quiet watch says that it lives."""


class Watcher:
    """Write the lines of one watch connection, which may watch several keys; `cluster` is the id of the store."""

    def __init__(
        self,
        mirror: Mirror,
        response: web.StreamResponse,
        subscription: Subscription,
        targets: list[WatchTarget],
        cluster: int,
    ) -> None:
        self._mirror = mirror
        self._response = response
        self._subscription = subscription
        self._targets = targets
        self._cluster = cluster
        self._next = {target.watch_id: target.start_revision for target in targets}

    async def run(self, over: Callable[[], bool]) -> None:
        """Tell what happens until it is `over`, which is asked at least at every progress line.

        Raises:
            TimeoutError: The pod does not read.
            ConnectionError: The pod is gone.
        """
        revision = self._mirror.revision
        for target in self._targets:
            self._next[target.watch_id] = target.start_revision or revision + 1
        created = (relay_wire.encode_created(one.watch_id, revision, self._cluster) for one in self._targets)
        await self._write(b"".join(created))
        changed = {target.key for target in self._targets}
        while not over():
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
            await self._subscription.wait(PROGRESS_S)
            changed = set(self._subscription.take())

    def _news(self, target: WatchTarget) -> list[bytes]:
        event = self._mirror.since(target.key, self._next[target.watch_id])
        if event is None:
            return []
        self._next[target.watch_id] = event.revision + 1
        revision = max(event.revision, self._mirror.revision)
        return [relay_wire.encode_event(target.watch_id, revision, event)]

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_S):
            await self._response.write(data)
