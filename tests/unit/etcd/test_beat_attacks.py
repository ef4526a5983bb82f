"""What a pod tries up its open watch: the watch ends, it is counted, and nothing changes for others."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide_operator.serve import bodies, watcher
from tests.unit.etcd.relay_stand import ALICE, BOB, KEYS, Stand, b64, until

pytestmark = pytest.mark.both_loops

ORDER = KEYS.order(ALICE.namespace, ALICE.uid)


@pytest.fixture
async def stand() -> AsyncIterator[Any]:
    async with Stand() as stand:
        yield stand


async def opened(stand: Stand, up: Any) -> None:
    await up.until(b'"created":true')
    assert stand.open_watches() == 1


async def cut(stand: Stand, up: Any, status: int, code: int) -> None:
    """Expect that the watch ends with an error, is counted, and changed nothing."""
    before = stand.store.revision, dict(stand.store._leases)
    rest = await up.rest()
    assert b'"error":{"code":%d,' % code in rest
    assert rest.endswith(b"0\r\n\r\n")
    await until(lambda: not stand.open_watches())
    assert stand.cuts(status) == 1
    assert (stand.store.revision, dict(stand.store._leases)) == before


async def test_a_beat_for_a_lease_of_another_pod_is_refused(stand: Stand) -> None:
    _, granted = await stand.post("/v3/lease/grant", {"TTL": "30"}, token="bob")
    expires_at = stand.store._leases[int(granted["ID"])].expires_at
    async with stand.beating({"key": b64(ORDER)}) as up:
        await opened(stand, up)
        up.send(json.dumps({"ID": granted["ID"]}).encode() + b"\n")
        await cut(stand, up, 403, 7)
    assert stand.store._leases[int(granted["ID"])].expires_at == expires_at


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"x", b"\xff", b'{"ID":"1","TTL":"5"}', b'{"create_request":{}}', b'{"ID":{}}', b"[" * 900],
)
async def test_what_is_no_beat_ends_the_watch(stand: Stand, line: bytes) -> None:
    async with stand.beating({"key": b64(ORDER)}) as up:
        await opened(stand, up)
        up.send(line + b"\n")
        rest = await up.rest()
        assert b'"error":{"code":' in rest
    assert stand.cuts(400) + stand.cuts(403) == 1


async def test_what_is_no_chunk_renews_nothing_and_is_not_kept(stand: Stand) -> None:
    _, granted = await stand.post("/v3/lease/grant", {"TTL": "30"})
    lease = stand.store._leases[int(granted["ID"])]
    before = lease.expires_at
    async with stand.beating({"key": b64(ORDER)}) as up:
        await opened(stand, up)
        taken = stand.beats().total_bytes
        for _ in range(100):
            up.send_raw(b"nonsense\r\n\r\n" + b"x" * 10_000)
        up.send(json.dumps({"ID": granted["ID"]}).encode() + b"\n")
        revision = await stand.write(ORDER, b"1")
        await up.until(b'"mod_revision":"%d"' % revision)
        assert stand.beats().total_bytes == taken
    await until(lambda: not stand.open_watches())
    assert lease.expires_at == before


async def test_a_pod_that_beats_without_a_pause_is_cut_off_and_others_are_not(stand: Stand) -> None:
    _, granted = await stand.post("/v3/lease/grant", {"TTL": "30"})
    async with stand.watch({"key": b64(KEYS.order("shop", BOB.uid))}, token="bob") as lines:
        await lines.next()
        async with stand.beating({"key": b64(ORDER)}) as up:
            await up.until(b'"created":true')
            for _ in range(1_000):
                if stand.cuts(429) or stand.cuts(413):
                    break
                up.send(json.dumps({"ID": granted["ID"]}).encode() + b"\n")
                await asyncio.sleep(0.001)
            await up.rest()
        await until(lambda: stand.open_watches() == 1)
        assert stand.cuts(429) + stand.cuts(413) == 1
        await stand.write(KEYS.order("shop", BOB.uid), b"x")
        assert "events" in await lines.next()


@pytest.mark.parametrize("piece", [b"1" * 2_000, b"1", b"1" * 100])
async def test_a_beat_without_an_end_is_cut_off(stand: Stand, piece: bytes) -> None:
    async with stand.beating({"key": b64(ORDER)}) as up:
        await opened(stand, up)
        for _ in range(2_000):
            if stand.cuts(413):
                break
            for _ in range(max(1, 100 // len(piece))):
                up.send(piece)
            await asyncio.sleep(0.001)
        await up.rest()
    assert stand.cuts(413) == 1


async def test_a_flood_of_beats_does_not_fill_the_memory(stand: Stand) -> None:
    """A look takes what came since the last one: until then no more may come than a buffer holds."""
    stand.relay._pulse._look_s = 600.0
    await asyncio.sleep(0.02)  # the look that is under way
    async with stand.beating({"key": b64(ORDER)}) as up:
        await opened(stand, up)
        content = stand.beats()
        for _ in range(1_000):
            up.send(b"1" * 4096)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await up.drain()
        _, most = content.get_read_buffer_limits()
        assert content.total_bytes <= most + 2**18, "and one read of the socket"


async def test_an_opening_without_an_end_is_not_waited_for(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.05)
    async with stand.beating() as up:
        up.send(b" " * 10)
        assert b" 408 " in await up.until(b"\r\n")


async def test_an_opening_has_a_size(stand: Stand) -> None:
    async with stand.beating() as up:
        for _ in range(9):
            up.send(b" " * 4096)
        assert b" 413 " in await up.until(b"\r\n")


async def test_the_opening_of_a_watch_is_checked_as_every_other(stand: Stand) -> None:
    async with stand.beating({"key": b64(KEYS.leader)}) as up:
        assert b" 403 " in await up.until(b"\r\n")


async def test_a_pod_that_beats_and_does_not_read_is_let_go(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "WRITE_S", 600.0)
    _, granted = await stand.post("/v3/lease/grant", {"TTL": "30"})
    async with stand.beating({"key": b64(ORDER)}) as up:
        await until(stand.open_watches)
        (one,) = stand.relay._pulse._felt
        async with asyncio.timeout(20):
            while not one.watcher._request.protocol.writing_paused:
                await stand.write(ORDER, b"x" * 200_000)
        up.send(json.dumps({"ID": granted["ID"]}).encode() + b"\n")
        await until(lambda: not stand.open_watches())


async def test_an_answer_that_fills_the_last_buffer_is_not_waited_for(stand: Stand) -> None:
    async with stand.beating({"key": b64(ORDER)}) as up:
        await opened(stand, up)
        (one,) = stand.relay._pulse._felt
        told: Any = one.watcher
        transport = told._request.transport
        async with asyncio.timeout(20):
            while not transport.get_write_buffer_size():
                await told.answer(1 << 60, alive=True)
                await asyncio.sleep(0)
            # aiohttp waits for the pod after so many bytes, the transport says stop after so many: let it be one write.
            told._response._payload_writer.buffer_size = transport.get_write_buffer_size()
            while not transport.is_closing():
                await told.answer(1 << 60, alive=True)
        await until(lambda: not stand.open_watches())
