"""Requests: which pods a controller asked to delete, noted by whichever replica answered it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ebbtide.protocol import Keys, Request
from ebbtide_operator.ports import LeaseEnded, Put, Store, StoreUnavailable
from ebbtide_operator.store.mirror import Mirror

TTL_S = 60
"""Life of the lease that requests are bound to. One lease serves a third of its life, so a note lives 40 to 60 s."""
AGAIN_S = 20.0
"""How long a note stands before the same request is noted again."""
MOST_NOTED = 10_000


class Requests:
    """Write requests, each once in a while: controllers ask for the same pod dozens of times in a second."""

    def __init__(self, store: Store, keys: Keys, mirror: Mirror, clock: Callable[[], float]) -> None:
        self._store = store
        self._keys = keys
        self._mirror = mirror
        self._clock = clock
        self._noted: dict[tuple[str, str], float] = {}
        self._lease = 0
        self._granted_at = 0.0
        self._granting = asyncio.Lock()

    async def post(self, namespace: str, uid: str, by: str) -> None:
        """Note a request, unless that was done lately by us or another replica."""
        now = self._clock()
        pod = (namespace, uid)
        if abs(now - self._noted_at(pod)) < AGAIN_S:
            return
        # Before the first wait: the next request for this pod may come in the same millisecond.
        self._noted[pod] = now
        self._shrink(now)
        value = Request(by=by, at=now).encode()
        try:
            await self._write(self._keys.request(namespace, uid), value, now)
        except BaseException:
            self._noted.pop(pod, None)
            raise

    def _noted_at(self, pod: tuple[str, str]) -> float:
        mirrored = self._mirror.requests.get(pod[0], {}).get(pod[1])
        return max(self._noted.get(pod, float("-inf")), mirrored.at if mirrored else float("-inf"))

    async def _write(self, key: str, value: bytes, now: float) -> None:
        for _ in range(2):
            lease = await self._current_lease(now)
            try:
                await self._store.transact([], [Put(key, value, lease)])
            except LeaseEnded:
                if self._lease == lease:
                    self._lease = 0
            else:
                return
        raise StoreUnavailable("leases end before their use")

    async def _current_lease(self, now: float) -> int:
        async with self._granting:
            if not self._lease or abs(now - self._granted_at) > TTL_S / 3:
                self._lease = await self._store.grant(TTL_S)
                self._granted_at = now
            return self._lease

    def _shrink(self, now: float) -> None:
        if len(self._noted) > MOST_NOTED:
            self._noted = {pod: at for pod, at in self._noted.items() if abs(now - at) < AGAIN_S}
