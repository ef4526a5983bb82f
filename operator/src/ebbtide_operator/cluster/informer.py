"""A list + watch of the labelled pods: what the rules know about pods comes from here.

The label is selected on the server, so pods of other workloads cost nothing. The cache is replaced by a list only where
the API server no longer has the history since the last event.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import msgspec

from ebbtide_operator.cluster.api import Api, ApiError
from ebbtide_operator.cluster.pods import Pod, PodList, Status, WatchEvent, view
from ebbtide_operator.core import names
from ebbtide_operator.core.model import PodView

logger = logging.getLogger(__name__)

PATH = "/api/v1/pods"
SERVER_TIMEOUT_S = 240
SILENCE_S = 90.0
"""The API server sends a bookmark about once a minute: a connection that is quiet for longer is dead."""
LONGEST_RETRY_S = 10.0

_list = msgspec.json.Decoder(PodList)
_event = msgspec.json.Decoder(WatchEvent)


class PodInformer:
    """Keep the managed pods, by UID and by owner.

    Args:
        api: The connection.
        on_change: Called with each pod's new view after it was stored; a deleted one comes with its last view.
        on_event: Called whenever the API server was heard (for the staleness metric).
    """

    def __init__(
        self, api: Api, on_change: Callable[[PodView], None], on_event: Callable[[], None] = lambda: None
    ) -> None:
        self._api = api
        self._on_change = on_change
        self._on_event = on_event
        self._pods: dict[str, PodView] = {}
        self._versions: dict[str, int] = {}
        self._by_owner: dict[str, set[str]] = {}
        self._version = ""
        self.synced = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pods)

    def get(self, uid: str) -> PodView | None:
        return self._pods.get(uid)

    def owners(self) -> Iterator[str]:
        """Yield the UIDs of the controllers that own pods."""
        yield from self._by_owner

    def of(self, owner_uid: str) -> Iterator[PodView]:
        """Yield the pods that a controller owns."""
        for uid in self._by_owner.get(owner_uid, ()):
            yield self._pods[uid]

    def observe(self, document: dict[str, Any]) -> None:
        """Take a pod as the answer to our own write showed it, ahead of the watch.

        Without this, a decision made before the watch caught up would repeat the write.
        """
        pod = msgspec.convert(document, Pod)
        # A pod that is not here may be gone already: then the watch is further than this answer.
        is_new = names.MANAGED in pod.metadata.labels and _number(pod.metadata.resource_version) > _number(
            self._version
        )
        if pod.metadata.uid in self._pods or is_new:
            self._store(pod)

    async def run(self) -> None:
        """List and watch until cancelled; failures are retried with jitter."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._relist()
                await self._watch()
                failures = 0
            except (ApiError, aiohttp.ClientError, TimeoutError, ValueError) as error:
                if isinstance(error, ApiError) and error.status == 410:
                    self._version = ""
                    continue
                failures += 1
                logger.warning("informer.retry", extra={"error": str(error) or repr(error)})
                longest = min(0.1 * 2**failures, LONGEST_RETRY_S)
                await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 (jitter)

    async def _relist(self) -> None:
        found: dict[str, Pod] = {}
        params = {"labelSelector": names.MANAGED, "limit": "500"}
        while True:
            page = _list.decode(await self._api.raw(PATH, **params))
            found |= {pod.metadata.uid: pod for pod in page.items}
            if not page.metadata.continue_:
                break
            params["continue"] = page.metadata.continue_
        for uid in self._pods.keys() - found.keys():
            self._remove(uid)
        for pod in found.values():
            self._store(pod)
        self._version = page.metadata.resource_version
        self._on_event()
        self.synced.set()

    async def _watch(self) -> None:
        params = {
            "labelSelector": names.MANAGED,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            # Jitter, so that the replicas' watches do not end together.
            "timeoutSeconds": str(SERVER_TIMEOUT_S + random.randrange(60)),  # noqa: S311
        }
        started = time.monotonic()
        async with self._api.stream(PATH, silence_s=SILENCE_S, **params) as lines:
            async for line in lines:
                self._on_event()
                self._take(_event.decode(line))
        if time.monotonic() - started < 1:
            # A server that ends each watch at once must not be asked a thousand times a second.
            await asyncio.sleep(random.uniform(0.2, 1))  # noqa: S311

    def _take(self, event: WatchEvent) -> None:
        pod = event.object
        match event.type:
            case "ADDED" | "MODIFIED":
                self._store(pod)
            case "DELETED":
                self._remove(pod.metadata.uid, pod)
            case "ERROR":
                code = pod.code or (pod.status.code if isinstance(pod.status, Status) else 0)
                raise ApiError(code or 500, "WatchError", pod.message)
            case _:  # BOOKMARK
                pass
        if pod.metadata.resource_version:
            self._version = pod.metadata.resource_version

    def _store(self, pod: Pod) -> None:
        new = view(pod)
        version = _number(pod.metadata.resource_version)
        # The watch repeats what `observe` saw, and what happened before it.
        if version < self._versions.get(new.uid, 0):
            return
        self._versions[new.uid] = version
        if self._pods.get(new.uid) == new:
            return
        self._pods[new.uid] = new
        self._by_owner.setdefault(new.owner_uid, set()).add(new.uid)
        self._on_change(new)

    def _remove(self, uid: str, last: Pod | None = None) -> None:
        old = self._pods.pop(uid, None)
        self._versions.pop(uid, None)
        gone = old if last is None else view(last)
        if old is not None:
            owned = self._by_owner[old.owner_uid]
            owned.discard(uid)
            if not owned:
                del self._by_owner[old.owner_uid]
        if gone is not None:
            self._on_change(gone)


def _number(resource_version: str) -> int:
    return int(resource_version or 0)
