"""The relay as an attacker in a pod meets it: the operator's own server with TLS, TokenReview over HTTP, real etcd.

docs/relay.md lists the attacks.
"""

import asyncio
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ebbtide.etcd import PermissionDenied, Unauthenticated
from ebbtide.protocol import Order
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.serve import app as server_module
from ebbtide_operator.serve import bodies, newcomers
from ebbtide_operator.serve.app import Server
from ebbtide_operator.serve.identity import KNOWN_S
from tests.contract.member import Member
from tests.contract.relay_scene import Scene, scene_at
from tests.unit.etcd.relay_stand import a_report, b64

pytestmark = [pytest.mark.etcd, pytest.mark.both_loops]
IDLE = 1_000


@pytest.fixture
async def scene(shared_etcd: Member, tmp_path: Path) -> AsyncIterator[Any]:
    async with scene_at(shared_etcd, tmp_path) as scene:
        yield scene


async def unharmed(scene: Scene, before: Any) -> None:
    """Expect that nothing was changed, and that a pod is still served."""
    assert await asyncio.to_thread(scene.held) == before
    with scene.client(scene.tokens.issue()) as client:
        assert await asyncio.to_thread(client.get, scene.keys.order("shop", "uid-alice")) is not None


# --- who


async def test_a_pods_own_token_opens_its_own_keys(scene: Scene) -> None:
    """The measure of all that follows: the way is open for whom it is meant."""
    order = await scene.order("shop", "uid-alice")
    report = scene.keys.report("shop", "uid-alice")
    with scene.client(scene.tokens.issue()) as client:
        found = await asyncio.to_thread(client.get, order)
        assert found is not None
        assert Order.decode(found.value).reason == "secret"
        lease = await asyncio.to_thread(client.grant, 30)
        await asyncio.to_thread(client.put, report, a_report(), lease=lease)
    assert report in {item.key for item in await asyncio.to_thread(scene.held)}


@pytest.mark.parametrize(
    "claims",
    [
        {"audience": "https://kubernetes.default.svc"},
        {"life_s": -1},
        {"uid": ""},
    ],
    ids=["foreign audience", "expired", "bound to no pod"],
)
async def test_a_token_that_was_not_made_for_this_does_not_get_in(scene: Scene, claims: dict[str, Any]) -> None:
    order = await scene.order("shop", "uid-alice")
    before = await asyncio.to_thread(scene.held)
    with scene.client(scene.tokens.issue(**claims)) as client:
        with pytest.raises(Unauthenticated):
            await asyncio.to_thread(client.get, order)
        with pytest.raises(Unauthenticated):
            await asyncio.to_thread(client.put, scene.keys.report("shop", "uid-alice"), a_report())
    await unharmed(scene, before)


async def test_without_a_token_nothing_is_answered_and_the_connection_ends(scene: Scene) -> None:
    order = await scene.order("shop", "uid-alice")
    body = b'{"key":"%b"}' % b64(order).encode()
    head = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = await scene.say(head + body)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b64(b"secret").encode() not in answer


async def test_a_token_that_expires_is_good_for_a_minute_at_most(scene: Scene) -> None:
    order = await scene.order("shop", "uid-alice")
    with scene.client(scene.tokens.issue(life_s=5)) as client:
        assert await asyncio.to_thread(client.get, order) is not None
        scene.tokens.now += KNOWN_S + 1
        with pytest.raises(Unauthenticated):
            await asyncio.to_thread(client.get, order)


@pytest.mark.parametrize(
    "claims",
    [{"uid": "uid-bob"}, {"namespace": "bank"}, {"namespace": "bank", "uid": "uid-eve"}],
    ids=["another pod", "another namespace, the same UID", "another namespace"],
)
async def test_anothers_token_opens_nothing_of_ours(scene: Scene, claims: dict[str, Any]) -> None:
    order = await scene.order("shop", "uid-alice")
    before = await asyncio.to_thread(scene.held)
    with scene.client(scene.tokens.issue(**claims)) as client:
        with pytest.raises(PermissionDenied):
            await asyncio.to_thread(client.get, order)
        with pytest.raises(PermissionDenied):
            await asyncio.to_thread(client.put, scene.keys.report("shop", "uid-alice"), a_report())
    await unharmed(scene, before)


# --- what

PATHS = [
    "/v3/kv/range/../txn",
    "/v3/kv/%2e%2e/kv/txn",
    "/v3/kv/range%2f..%2ftxn",
    "/v3//kv/txn",
    "//v3/kv/txn",
    "/V3/KV/TXN",
    "/v3/kv/txn;/v3/kv/range",
    "/v3/kv/range%00",
    "/v3/kv/range?key=Lw==&range_end=AA==",
    "/v3beta/kv/txn",
    "/v3alpha/kv/range",
    "/v2/keys/",
    "http://127.0.0.1:2379/v3/kv/txn",
    "/metrics",
    "/debug/pprof/",
]


@pytest.mark.parametrize("path", PATHS)
async def test_no_spelling_of_a_path_reaches_etcd(scene: Scene, path: str) -> None:
    """A transaction within a transaction that would read everything and delete it."""
    await scene.order("shop", "uid-alice")
    before = await asyncio.to_thread(scene.held)
    everything = {"key": b64("\0"), "range_end": b64("\0")}
    nested = {"request_txn": {"success": [{"request_range": everything}, {"request_delete_range": everything}]}}
    body = str({"success": [nested], **everything}).replace("'", '"').encode()
    answer = await scene.say(
        b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (path.encode(), scene.tokens.issue().encode(), len(body), body)
    )
    assert answer.split(b" ")[1] in {b"400", b"403", b"404"}, answer
    assert b"secret" not in answer
    await unharmed(scene, before)


@pytest.mark.parametrize("key", ["/", "{prefix}/orders/", "{prefix}/orders/shop/", "{order}"])
async def test_ranges_and_prefixes_are_refused(scene: Scene, key: str) -> None:
    order = await scene.order("shop", "uid-alice")
    key = key.format(prefix=scene.keys.prefix, order=order)
    token = scene.tokens.issue()
    for path, body in (
        ("/v3/kv/range", {"key": b64(key), "range_end": b64("\0")}),
        ("/v3/watch", {"create_request": {"key": b64(key), "range_end": b64("\0")}}),
        ("/v3/kv/deleterange", {"key": b64(key), "range_end": b64("\0")}),
    ):
        status, text = await scene.post(path, body, token)
        assert status == 403, text
        assert "secret" not in text


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 2\r\nContent-Length: 200\r\n"],
    ids=["two framings", "two lengths"],
)
async def test_a_second_request_is_not_smuggled_in(scene: Scene, framing: bytes) -> None:
    report = scene.keys.report("shop", "uid-alice")
    await scene.order("shop", "uid-alice")
    before = await asyncio.to_thread(scene.held)
    authorization = b"Authorization: Bearer %b\r\n" % scene.tokens.issue().encode()
    body = b'{"key":"%b","value":"%b"}' % (b64(report).encode(), b64(a_report()).encode())
    hidden = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (authorization, len(body), body)
    first = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\n%b%b\r\n0\r\n\r\n" % (authorization, framing)
    answer = await scene.say(first + hidden)
    assert answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 ")), answer
    assert answer.count(b"HTTP/1.") == 1
    await unharmed(scene, before)


# --- how much, how slowly, how many


async def test_a_body_of_a_gigabyte_is_refused_before_it_comes(scene: Scene) -> None:
    head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: 1073741824\r\n\r\n"
    answer = await scene.say(head % scene.tokens.issue().encode())
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "line", [b"GET /%b HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: %b\r\n\r\n"], ids=["path", "head"]
)
async def test_a_head_has_a_size(scene: Scene, line: bytes) -> None:
    answer = await scene.say(line % (b"x" * 100_000))
    assert b" 400 " in answer.partition(b"\r\n")[0]


async def test_a_body_that_dribbles_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.3)
    head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: 1000\r\n\r\n"
    reader, writer = await scene.connect()
    writer.write(head % scene.tokens.issue().encode())
    dribbling = asyncio.create_task(dribble(writer))
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    dribbling.cancel()
    writer.close()


async def test_a_head_that_dribbles_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "PATIENCE_S", 0.5)
    reader, writer = await scene.connect()
    writer.write(b"POST /v3/kv/put HTTP/1.1\r\nX: ")
    dribbling = asyncio.create_task(dribble(writer))
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    dribbling.cancel()
    writer.close()


async def test_a_handshake_that_does_not_end_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_S", 0.3)
    other = Server(Metrics(), tuple)
    port = await other.start_secure([], scene.tls, 0, "localhost")
    reader, writer = await asyncio.open_connection("localhost", port)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await other.close()


async def dribble(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b" ")
        await asyncio.sleep(0.05)


async def test_a_thousand_idle_connections_keep_nobody_out_and_are_closed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    order = await scene.order("shop", "uid-alice")
    monkeypatch.setattr(newcomers, "GRACE_S", 1.0)
    idle = await asyncio.to_thread(lambda: [silent(scene) for _ in range(IDLE)])
    with scene.client(scene.tokens.issue()) as client:
        asked_at = time.monotonic()
        assert await asyncio.to_thread(client.get, order) is not None
        assert time.monotonic() - asked_at < 5
        # Those for which there is no room go first, the others after their time.
        assert await left(idle, newcomers.MOST) <= newcomers.MOST
        monkeypatch.setattr(newcomers, "PATIENCE_S", 1.0)
        assert await left(idle, 0) == 0
        assert await asyncio.to_thread(client.get, order) is not None
    for sock in idle:
        sock.close()


def silent(scene: Scene) -> ssl.SSLSocket:
    """Open a connection with TLS and say nothing."""
    sock = scene.trusting.wrap_socket(socket.create_connection(("localhost", scene.port)), server_hostname="localhost")
    sock.setblocking(False)
    return sock


async def left(idle: list[ssl.SSLSocket], most: int) -> int:
    """Wait until at most so many are open."""
    async with asyncio.timeout(30):
        while (still := sum(is_open(sock) for sock in idle)) > most:  # noqa: ASYNC110 (the server closes them)
            await asyncio.sleep(0.1)
    return still


def is_open(sock: ssl.SSLSocket) -> bool:
    try:
        return bool(sock.recv(1))
    except ssl.SSLWantReadError:
        return True
    except OSError:
        return False
