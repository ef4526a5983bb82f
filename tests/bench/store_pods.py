"""The pods' side of `tests.bench.store`, in a process of its own.

`real` pods are the library as it is, a runtime each, and tell when their intake closed. `simulated` ones only speak the
protocol, because the library takes a few threads for each pod, and thousands of those would measure this process: a
watch of order and phase on one connection, a report under a lease and its keep-alive on another.
"""

import asyncio
import json
import logging
import random
import ssl
import sys
import time
from asyncio import sslproto
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from ebbtide.agent import KEEP_ALIVE_S, LEASE_S
from ebbtide.etcd import wire
from ebbtide.protocol import Keys, PodState, Report
from ebbtide.runtime import Runtime
from ebbtide.settings import Settings
from tests.bench.store_processes import lines_of

KEYS = Keys()
PHASE = KEYS.phase("shop", "deployment", "orders")
REQUEST_S = 10.0
"""Between the keep-alives of a library that knows no beats."""
AT_ONCE = 50
"""Pods that connect side by side."""


class Real:
    """One pod: the library's own runtime."""

    def __init__(self, uid: str, url: str, folder: Path) -> None:
        self.uid = uid
        token = folder / uid
        token.write_text(f"shop/{uid}")
        self._runtime = Runtime(
            Settings(
                pod_name=uid,
                pod_namespace="shop",
                pod_uid=uid,
                workload="deployment/orders",
                endpoints=(url,),
                ca=(folder / "ca.crt").read_text(),
                token_file=str(token),
                admin_port=0,
            ),
            watchdog=False,
        )
        self.told_at = 0.0
        registry: Any = self._runtime._registry
        close_intake = registry.close_intake

        def closed() -> None:
            close_intake()
            self.told_at = time.monotonic()

        registry.close_intake = closed

    async def start(self) -> None:
        self._left = asyncio.create_task(self._live())
        while not self._runtime._pod.store_connected:  # noqa: ASYNC110 (a thread connects)
            await asyncio.sleep(0.02)

    async def _live(self) -> None:
        async with self._runtime:
            await self._runtime.wait_exit()

    async def left(self) -> None:
        await self._left


class Simulated:
    """One pod: the protocol, and nothing behind it."""

    def __init__(self, uid: str, url: str, tls: ssl.SSLContext, *, by_request: bool) -> None:
        self.uid = uid
        self._by_request = by_request
        self._lease = ""
        self.told_at = 0.0
        self._url = url
        # A session for each: pods do not share connections.
        self._session = aiohttp.ClientSession(
            # An idle pod has one connection: what it reported by is closed after a while.
            connector=aiohttp.TCPConnector(ssl=tls, keepalive_timeout=2),
            headers={"Authorization": f"Bearer shop/{uid}"},
        )
        self._connected = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._watch()))
        await self._connected.wait()

    async def report(self) -> None:
        """Report under a lease, and keep it alive from now on."""
        lease = (await self._post("lease/grant", {"TTL": str(LEASE_S)}))["ID"]
        report = Report(state=PodState.SERVING, sequence=1, boot_id="b").encode()
        await self._post("kv/put", {"key": text(KEYS.report("shop", self.uid)), "value": text(report), "lease": lease})
        self._lease = lease
        if self._by_request:
            self._tasks.append(asyncio.create_task(self._keep_alive()))

    async def left(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        async with self._session.post(f"{self._url}/v3/{path}", json=body) as answer:
            answer.raise_for_status()
            return json.loads(await answer.read())

    async def _keep_alive(self) -> None:
        """Do as the library did before beats."""
        await asyncio.sleep(REQUEST_S * random.random())
        while True:
            await asyncio.sleep(REQUEST_S * random.uniform(0.8, 1.0))
            await self._post("lease/keepalive", {"ID": self._lease})

    async def _up(self, creates: list[dict[str, Any]]) -> AsyncIterator[bytes]:
        """Send what the watch asks for, then beats."""
        yield b"".join(json.dumps(create).encode() + b"\n" for create in creates) + b"\n"
        # Spread from the beginning, as pods are after a while.
        await asyncio.sleep(KEEP_ALIVE_S * random.random())
        while True:
            await asyncio.sleep(KEEP_ALIVE_S * random.uniform(0.8, 1.0))
            if self._lease:
                yield json.dumps({"ID": self._lease}).encode() + b"\n"

    async def _watch(self) -> None:
        creates = [
            {"create_request": {"key": text(key), "watch_id": str(number), "progress_notify": True}}
            for number, key in enumerate((KEYS.order("shop", self.uid), PHASE), 1)
        ]
        body = "\n".join(json.dumps(create) for create in creates) if self._by_request else self._up(creates)
        headers = {} if self._by_request else {wire.HEARTBEAT: wire.SPARING}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.post(f"{self._url}/v3/watch", data=body, headers=headers, timeout=timeout) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if b'"events"' in line:
                    self.told_at = time.monotonic()
                elif b'"created"' in line:
                    self._connected.set()


class PodsProcess:
    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self._pods: dict[str, Real | Simulated] = {}

    async def run(self) -> None:
        async for command in lines_of(sys.stdin):
            print(json.dumps(await getattr(self, command.pop("do"))(**command)), flush=True)

    async def start(self, kind: str, uids: list[str], *, by_request: bool = False) -> Any:
        slots = asyncio.Semaphore(AT_ONCE)

        async def start_one(pod: Real | Simulated) -> None:
            async with slots:
                await pod.start()

        made = [
            Real(uid, self._url, self._folder)
            if kind == "real"
            else Simulated(uid, self._url, self._tls, by_request=by_request)
            for uid in uids
        ]
        await asyncio.gather(*(start_one(pod) for pod in made))
        self._pods |= {pod.uid: pod for pod in made}
        return len(made)

    async def report(self) -> Any:
        """Let every simulated pod report and keep its lease from now on, as the library does by itself."""
        pods = [pod for pod in self._pods.values() if isinstance(pod, Simulated)]
        for number in range(0, len(pods), AT_ONCE):
            await asyncio.gather(*(pod.report() for pod in pods[number : number + AT_ONCE]))
        return len(pods)

    async def told(self, within_s: float) -> Any:
        """Return when each pod was told something, once all were, and forget it."""
        async with asyncio.timeout(within_s):
            while not all(pod.told_at for pod in self._pods.values()):  # noqa: ASYNC110 (threads bring it about)
                await asyncio.sleep(0.02)
        told = {uid: pod.told_at for uid, pod in self._pods.items()}
        for pod in self._pods.values():
            pod.told_at = 0.0
        return told

    async def forget(self) -> Any:
        for pod in self._pods.values():
            pod.told_at = 0.0

    async def leave(self) -> Any:
        await asyncio.gather(*(pod.left() for pod in self._pods.values()))
        count = len(self._pods)
        self._pods.clear()
        return count


def text(value: str | bytes) -> str:
    return b64encode(value.encode() if isinstance(value, str) else value).decode()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    # Thousands of clients in one process: the buffers that the relay saves are saved here too.
    sslproto.SSLProtocol.max_size = 16 * 1024
    asyncio.run(PodsProcess(sys.argv[1], Path(sys.argv[2])).run())
