"""A pod's lease through the relay with TLS and real etcd: kept by beats alone, and lost with whoever falls silent."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ebbtide import agent as module
from ebbtide.etcd import KeyValue
from ebbtide_operator.serve import pulse, relay, relay_wire
from tests.contract.beating_pod import make
from tests.contract.member import Member
from tests.contract.proxy import Proxy
from tests.contract.relay_scene import AUTHORITY, Scene, scene_at

pytestmark = pytest.mark.etcd
TTL_S = 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_S", TTL_S)
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.9)
    monkeypatch.setattr(pulse, "ANSWER_S", 1.1)
    monkeypatch.setattr(module, "RETRY_MOST_S", 0.5)
    for place in (relay, relay_wire):
        monkeypatch.setattr(place, "TTL_S", range(1, 121))


def told(scene: Scene, folder: Path, *ports: int) -> dict[str, Any]:
    """Return what a pod is to know."""
    (folder / "ca").write_bytes(AUTHORITY.certificate)
    (folder / "token").write_text(scene.tokens.issue())
    endpoints = [f"https://localhost:{port}" for port in ports or (scene.port,)]
    names = {"ca": str(folder / "ca"), "token": str(folder / "token")}
    return {"endpoints": endpoints, "prefix": scene.keys.prefix, **names}


async def report(scene: Scene) -> KeyValue | None:
    """Return the pod's report as etcd has it."""
    with contextlib.suppress(ConnectionError):
        return await scene.store.get(scene.keys.report("shop", "uid-alice"))
    return None


async def reported(scene: Scene, *, anew_after: KeyValue | None = None) -> KeyValue:
    """Wait for the pod's report under a lease; `anew_after`: one that is gone by then. Lease ids come again."""
    before = 0 if anew_after is None else anew_after.create_revision
    async with asyncio.timeout(30):
        while True:
            found = await report(scene)
            if found is not None and found.lease and found.create_revision > before:
                return found
            await asyncio.sleep(0.02)


async def gone(scene: Scene) -> None:
    async with asyncio.timeout(30):
        while await report(scene) is not None:  # noqa: ASYNC110 (etcd brings it about)
            await asyncio.sleep(0.02)


async def until_quiet(scene: Scene, agent: Any) -> None:
    """Wait until an agent is connected, and its report stays as it is for a life of its lease."""
    async with asyncio.timeout(40):
        while True:
            found = await report(scene)
            with contextlib.suppress(AssertionError):
                assert agent.connected
                if found is not None:
                    await lasts(scene, found, ttls=1)
                    return
            await asyncio.sleep(0.05)


async def lasts(scene: Scene, stored: KeyValue, ttls: int = 3) -> None:
    """Expect that a report stays as it is for so many lives of a lease that nobody keeps."""
    until = time.monotonic() + ttls * TTL_S
    while time.monotonic() < until:
        assert await report(scene) == stored
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(settings: dict[str, Any]) -> AsyncIterator[Any]:
    """Run an agent in this process, whose keep-alives by requests are counted."""
    agent = make(settings)
    agent.requests = 0  # type: ignore[attr-defined]
    keep_alive = agent._client.keep_alive

    def counted(lease: int) -> bool:
        agent.requests += 1  # type: ignore[attr-defined]
        return keep_alive(lease)

    agent._client.keep_alive = counted  # type: ignore[method-assign]
    agent.start()
    try:
        yield agent
    finally:
        await asyncio.to_thread(agent.retire, 5)


async def test_a_pods_lease_is_kept_by_beats_alone_over_one_connection(shared_etcd: Member, tmp_path: Path) -> None:
    async with scene_at(shared_etcd, tmp_path) as scene, running(told(scene, tmp_path)) as agent:
        await lasts(scene, await reported(scene))
        assert agent.requests == 0
        assert agent.connected


async def test_a_stopped_pod_loses_its_lease_though_its_connection_stands(shared_etcd: Member, tmp_path: Path) -> None:
    async with scene_at(shared_etcd, tmp_path) as scene:
        pod = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.contract.beating_pod", json.dumps(told(scene, tmp_path))),
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            before = await reported(scene)
            await lasts(scene, before, ttls=1)
            pod.send_signal(signal.SIGSTOP)
            await gone(scene)
            pod.send_signal(signal.SIGCONT)
            await reported(scene, anew_after=before)
            pod.kill()
            await gone(scene)
        finally:
            with contextlib.suppress(ProcessLookupError):
                pod.kill()
            await pod.wait()


async def test_a_pod_that_is_cut_off_loses_its_lease_and_comes_back(shared_etcd: Member, tmp_path: Path) -> None:
    async with scene_at(shared_etcd, tmp_path) as scene:
        proxy = Proxy(scene.port)
        try:
            async with running(told(scene, tmp_path, proxy.port)):
                before = await reported(scene)
                proxy.refusing = True
                proxy.cut()
                await gone(scene)
                proxy.refusing = False
                await lasts(scene, await reported(scene, anew_after=before), ttls=1)
        finally:
            await asyncio.to_thread(proxy.close)


async def test_a_pod_goes_to_another_replica_with_its_lease(shared_etcd: Member, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with (
        scene_at(shared_etcd, tmp_path) as scene,
        scene_at(shared_etcd, tmp_path / "other", prefix=scene.keys.prefix, tokens=scene.tokens) as other,
    ):
        proxies = [Proxy(one.port) for one in (scene, other)]
        try:
            async with running(told(scene, tmp_path, *(proxy.port for proxy in proxies))) as agent:
                before = await reported(scene)
                for _ in range(2):
                    port = agent._client._transport.rotation.current.port
                    (dying,) = [proxy for proxy in proxies if proxy.port == port]
                    dying.refusing = True
                    dying.cut()
                    await lasts(scene, before, ttls=2)
                    assert agent.connected
                    dying.refusing = False
        finally:
            for proxy in proxies:
                await asyncio.to_thread(proxy.close)


async def test_a_lease_outlives_a_restart_of_etcd(etcd: Member, tmp_path: Path) -> None:
    async with scene_at(etcd, tmp_path) as scene, running(told(scene, tmp_path)) as agent:
        before = await reported(scene)
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.start)
        # It has tried by requests meanwhile, and is quiet again once its watch is back.
        await until_quiet(scene, agent)
        stored = await reported(scene)
        assert stored.lease == before.lease
        requests = agent.requests
        await lasts(scene, stored)
        assert agent.requests == requests


async def test_a_lease_that_was_taken_away_is_replaced_at_the_next_beat(shared_etcd: Member, tmp_path: Path) -> None:
    async with scene_at(shared_etcd, tmp_path) as scene, running(told(scene, tmp_path)) as agent:
        before = await reported(scene)
        await scene.store.revoke(before.lease)
        await lasts(scene, await reported(scene, anew_after=before), ttls=1)
        assert agent.requests == 0
