import asyncio
import datetime as dt
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from ebbtide_operator.cluster.authority import Leaf, Pair, make_authority, make_leaf
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.serve import app, memory
from ebbtide_operator.serve.app import Server

pytestmark = pytest.mark.both_loops


class Scene:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.missing: list[str] = ["pods are not listed yet"]
        self.stuck: list[str] = []
        self.server = Server(self.metrics, lambda: self.missing, lambda: self.stuck)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.server.close()


async def fetch(url: str, **options: object) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(url, **options) as answer:  # type: ignore[arg-type]
        return answer.status, await answer.text(), answer.headers["Content-Type"]


async def test_ready_says_what_is_missing_until_nothing_is(scene: Scene) -> None:
    port = await scene.server.start_plain(0, "127.0.0.1")
    status, text, _ = await fetch(f"http://127.0.0.1:{port}/readyz")
    assert (status, text) == (503, "pods are not listed yet")
    scene.missing.clear()
    assert (await fetch(f"http://127.0.0.1:{port}/readyz"))[0] == 200


async def test_live_says_what_is_stuck(scene: Scene) -> None:
    port = await scene.server.start_plain(0, "127.0.0.1")
    assert (await fetch(f"http://127.0.0.1:{port}/healthz"))[0] == 200
    scene.stuck.append("the planner")
    assert (await fetch(f"http://127.0.0.1:{port}/healthz"))[:2] == (503, "the planner")


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
async def test_metrics_come_in_the_format_that_was_asked_for(scene: Scene, accept: str) -> None:
    scene.metrics.leader.set(1)
    port = await scene.server.start_plain(0, "127.0.0.1")
    status, text, kind = await fetch(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    assert status == 200
    assert "ebbtide_leader 1.0" in text
    assert kind.startswith(accept.partition(";")[0])


@pytest.fixture(scope="module")
def authority() -> Pair:
    return make_authority("test", dt.datetime.now(dt.UTC))


@pytest.fixture
def tls(authority: Pair, tmp_path: Path) -> ssl.SSLContext:
    pair = make_leaf(authority, Leaf("ebbtide", ("localhost",)), dt.datetime.now(dt.UTC))
    (tmp_path / "crt").write_bytes(pair.certificate)
    (tmp_path / "key").write_bytes(pair.key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    return tls


@pytest.fixture
def trusting(authority: Pair) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


async def test_the_secure_port_serves_its_routes_and_nothing_else(
    scene: Scene, tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    port = await scene.server.start_secure([web.get("/hello", hello)], tls, 0, "127.0.0.1")
    assert (await fetch(f"https://localhost:{port}/hello", ssl=trusting))[:2] == (200, "hello")
    assert (await fetch(f"https://localhost:{port}/metrics", ssl=trusting))[0] == 404


async def test_a_connection_with_tls_takes_little_memory(
    scene: Scene, tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """asyncio by itself fills a quarter of a MiB for each. Ours and the client's are counted, by what is resident:
    uvloop reserves as much and does not touch it.
    """
    port = await scene.server.start_secure([], tls, 0, "127.0.0.1")

    def connect() -> ssl.SSLSocket:
        return trusting.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")

    (await asyncio.to_thread(connect)).close()
    before = resident()
    held = await asyncio.to_thread(lambda: [connect() for _ in range(60)])
    after = resident()
    for sock in held:
        sock.close()
    assert (after - before) / len(held) < 160 * 1024


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_what_many_connections_left_is_given_back(
    scene: Scene, tls: ssl.SSLContext, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = asyncio.Event()
    monkeypatch.setattr(memory, "trim", trimmed.set)
    monkeypatch.setattr(app, "LOOK_S", 0.05)
    port = await scene.server.start_secure([], tls, 0, "127.0.0.1")

    def connect() -> ssl.SSLSocket:
        return trusting.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")

    held = await asyncio.to_thread(lambda: [connect() for _ in range(memory.LEAST)])
    served = scene.server._runners[0].server
    assert served is not None
    async with asyncio.timeout(20):
        while len(served.connections) < len(held):  # noqa: ASYNC110 (the kernel brings it about)
            await asyncio.sleep(0.01)
        await asyncio.sleep(2 * app.LOOK_S)
    assert not trimmed.is_set()
    for sock in held:
        sock.close()
    async with asyncio.timeout(20):
        await trimmed.wait()


async def test_the_kernel_holds_little_for_a_connection_that_is_not_read(
    scene: Scene, tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    """uvloop reads all that waits at once, and keeps that much memory as long as the connection is open."""

    async def held(request: web.Request) -> web.Response:
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        return web.Response(text=str(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)))

    port = await scene.server.start_secure([web.get("/held", held)], tls, 0, "127.0.0.1")
    _, size, _ = await fetch(f"https://localhost:{port}/held", ssl=trusting)
    assert int(size) <= 64 * 1024


async def test_a_closed_server_is_not_reached(scene: Scene) -> None:
    port = await scene.server.start_plain(0, "127.0.0.1")
    await scene.server.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await fetch(f"http://127.0.0.1:{port}/healthz")
