"""A watch on the pods of one namespace that keeps every event with the time at which it came."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiohttp

from .history import Pod, PodEvent

RETRY_S = 0.5
FIRST_LIST_S = 30.0

logger = logging.getLogger("demo.watch")

Pods = dict[str, Pod]


class WatchTimeoutError(Exception):
    """What was waited for did not come; says what and how long."""


class PodWatch:
    """Follow pods; an async context manager that ends with the watch closed.

    A lost watch lists again: what went unseen meanwhile comes as events with the time of the list.

    Args:
        session: Any client session.
        url: Base URL of the API server, or of a proxy to it.
        namespace: Whose pods to follow.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, namespace: str) -> None:
        self._session = session
        self._url = f"{url}/api/v1/namespaces/{namespace}/pods"
        self._changed = asyncio.Condition()
        self._listed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.events: list[PodEvent] = []
        self._pods: Pods = {}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow(), name="pod watch")
        self._task.add_done_callback(_report)
        try:
            async with asyncio.timeout(FIRST_LIST_S):
                await self._listed.wait()
        except TimeoutError:
            self._task.cancel()
            raise WatchTimeoutError(f"not within {FIRST_LIST_S:.0f} s: a list of the pods") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    def of(self, deployment: str) -> list[Pod]:
        """Return the pods of a Deployment as they are now."""
        return [pod for pod in self._pods.values() if pod.deployment == deployment]

    async def until(self, what: str, condition: Callable[[], bool], within_s: float) -> None:
        """Wait until a condition on the pods holds.

        Raises:
            WatchTimeoutError: It did not in time.
        """
        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise WatchTimeoutError(f"not within {within_s:.0f} s: {what}") from None

    async def _follow(self) -> None:
        while True:
            try:
                version = await self._list()
                self._listed.set()
                await self._watch(version)
            except (aiohttp.ClientError, TimeoutError) as error:
                logger.warning("pods: %r; again in %s s", error, RETRY_S)
            await asyncio.sleep(RETRY_S)

    async def _list(self) -> str:
        async with self._session.get(self._url, raise_for_status=True) as response:
            document = await response.json()
        now = time.time()
        pods = {pod.name: pod for pod in map(Pod.from_json, document["items"])}
        for name, pod in list(self._pods.items()):
            if name not in pods:
                await self._take(PodEvent(now, pod, gone=True))
        for pod in pods.values():
            if self._pods.get(pod.name) != pod:
                await self._take(PodEvent(now, pod))
        version: str = document["metadata"]["resourceVersion"]
        return version

    async def _watch(self, version: str) -> None:
        parameters = {"watch": "true", "resourceVersion": version}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(
            self._url, params=parameters, timeout=timeout, raise_for_status=True, read_bufsize=1 << 22
        ) as response:
            async for line in response.content:
                document: dict[str, Any] = json.loads(line)
                if document["type"] == "ERROR":
                    # The version is too old: list again.
                    return
                pod = Pod.from_json(document["object"])
                await self._take(PodEvent(time.time(), pod, gone=document["type"] == "DELETED"))

    async def _take(self, event: PodEvent) -> None:
        async with self._changed:
            self.events.append(event)
            if event.gone:
                self._pods.pop(event.pod.name, None)
            else:
                self._pods[event.pod.name] = event.pod
            self._changed.notify_all()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the pod watch failed: no figure after this is right", exc_info=error)
