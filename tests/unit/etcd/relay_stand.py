"""A relay over the memory store, on loopback, with two pods that have tokens."""

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from ebbtide.etcd import EtcdClient, Heartbeat, wire
from ebbtide.protocol import Keys, PodState, Report
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import PodIdentity, Put
from ebbtide_operator.serve.relay import Relay
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.memory import MemoryStore

KEYS = Keys()
ALICE = PodIdentity("shop", "orders-1", "uid-alice")
BOB = PodIdentity("shop", "orders-2", "uid-bob")
EVE = PodIdentity("bank", "vault-1", "uid-eve")
TOKENS = {"alice": ALICE, "bob": BOB, "eve": EVE}
ORDERS = WorkloadKey("shop", "deployment", "orders")


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def a_report(**changes: Any) -> bytes:
    return Report(**{"state": PodState.SERVING, "sequence": 1, "boot_id": "b", **changes}).encode()


async def until(condition: Any) -> None:
    """Wait until something is so that another thread or connection brings about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (no event reaches here from there)
            await asyncio.sleep(0.005)


class Stand:
    def __init__(self) -> None:
        self.now = 1000.0
        self.store = MemoryStore()
        self.state = MirroredDrainState(self.store)
        self.metrics = Metrics()
        self.reviews: list[str] = []
        self.reviewer = self._review
        self._seen_as: Any = None
        self.workloads = {ALICE.uid: ORDERS, BOB.uid: ORDERS}
        self.relay = Relay(
            self.state,
            self.store,
            self._authenticate,
            lambda namespace, uid: self.workloads.get(uid),
            self.metrics,
            clock=lambda: self.now,
            look_s=0.005,
        )

    async def _authenticate(self, token: str) -> PodIdentity | None:
        return await self.reviewer(token)

    async def _review(self, token: str) -> PodIdentity | None:
        self.reviews.append(token)
        return TOKENS.get(token)

    async def nobody(self, token: str) -> PodIdentity | None:
        """Review as Kubernetes does once every token has expired."""
        self.reviews.append(token)
        return None

    async def __aenter__(self) -> Any:
        def seen(handler: Any) -> Any:
            async def handle(request: web.Request) -> web.StreamResponse:
                answer: web.StreamResponse = await (self._seen_as or _as_it_is)(request, handler)
                return answer

            return handle

        # By hand: aiohttp keeps what its middlewares lead to, each test's stand with all that it holds, to the end.
        app = web.Application()
        app.add_routes([web.route(one.method, one.path, seen(one.handler)) for one in self.relay.routes()])
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = aiohttp.ClientSession()
        self._tasks = [asyncio.create_task(self.state.run()), asyncio.create_task(self.relay.run())]
        await self.state.synced()
        return self

    async def __aexit__(self, *args: object) -> None:
        self.relay.close()
        await self.session.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()

    def client(self, token: str) -> EtcdClient:
        """Return the pods' own client; call it in a thread."""
        return EtcdClient([self.url], token=lambda: token)

    async def post(
        self, path: str, body: Any, token: str | None = "alice", **arguments: Any
    ) -> tuple[int, dict[str, Any]]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data, headers=headers, **arguments) as answer:
            return answer.status, json.loads(await answer.read())

    async def write(self, key: str, value: bytes = b"{}") -> int:
        """Write as the operator does, and wait until pods can see it."""
        revision = await self.store.transact([], [Put(key, value)])
        assert revision is not None
        await self.state.mirror.reached(revision)
        return revision

    @contextlib.asynccontextmanager
    async def watch(self, *requests: Any, token: str = "alice") -> AsyncIterator[Any]:
        """Open a watch and give its lines; `*requests` are create requests."""
        body = "".join(json.dumps({"create_request": request}) for request in requests)
        headers = {"Authorization": f"Bearer {token}"}
        async with self.session.post(f"{self.url}/v3/watch", data=body, headers=headers) as answer:
            assert answer.status == 200, await answer.read()
            yield Lines(answer)

    @contextlib.asynccontextmanager
    async def beating(self, *requests: Any, token: str = "alice", heartbeat: str = "1") -> AsyncIterator[Any]:
        """Open a watch whose request stays open; gives what goes up and what comes down."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1024)
        head = (
            f"POST /v3/watch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Transfer-Encoding: chunked\r\n{wire.HEARTBEAT}: {heartbeat}\r\n\r\n"
        )
        writer.write(head.encode())
        up = Up(reader, writer)
        up.send(b"".join(json.dumps({"create_request": request}).encode() + b"\n" for request in requests) + b"\n")
        try:
            yield up
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def seen_as(self, middleware: Any) -> AsyncIterator[None]:
        """Let requests go through something else."""
        self._seen_as = middleware
        yield
        self._seen_as = None

    def beats(self) -> aiohttp.StreamReader:
        """Return what the relay has of the one watch that is beaten up."""
        (one,) = self.relay._pulse._felt
        assert one.beats is not None
        return one.beats._content

    def cuts(self, status: int) -> float:
        """Return how many watches were cut off with this status."""
        found = self.metrics.registry.get_sample_value("ebbtide_relay_watches_cut_total", {"status": str(status)})
        return found or 0.0

    def open_watches(self) -> float:
        return self.metrics.registry.get_sample_value("ebbtide_relay_connections") or 0.0


async def _as_it_is(request: web.Request, handler: Any) -> web.StreamResponse:
    answer: web.StreamResponse = await handler(request)
    return answer


class Lines:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def next(self) -> dict[str, Any] | None:
        """Return the next line's result; None at the end."""
        async with asyncio.timeout(10):
            line = await self._answer.content.readline()
        return json.loads(line)["result"] if line else None


class Up:
    """The pod's end of a watch that it beats up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    async def until(self, part: bytes) -> bytes:
        """Return what comes down up to and with a part."""
        async with asyncio.timeout(20):
            return await self.reader.readuntil(part)

    async def rest(self) -> bytes:
        """Return what comes down until the connection ends; nothing where it is broken off."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


class Follower:
    """A pod's own client watching in a thread, as the library's agent does."""

    def __init__(
        self, client: EtcdClient, keys: list[str], heartbeat: Heartbeat | None = None, **arguments: Any
    ) -> None:
        self.stop = threading.Event()
        self.changes: list[Any] = []
        self.watch = client.watch(keys, stop=self.stop, heartbeat=heartbeat, **arguments)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for batch in self.watch:
            self.changes += batch.changes

    async def until(self, count: int) -> list[Any]:
        await until(lambda: len(self.changes) >= count)
        return self.changes

    async def end(self) -> None:
        self.stop.set()
        await asyncio.to_thread(self._thread.join, 10)
        assert not self._thread.is_alive()
