"""A leader that was stopped past its lease writes nothing any more, however often it tries: etcd itself refuses.

`EBBTIDE_STALE_WRITES` says how often (1,000); `make test-store` takes 10,000.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide.etcd import Changed, EtcdClient
from ebbtide.protocol import Keys
from ebbtide_operator.ports import Deposed, Put
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from ebbtide_operator.store.leadership import Leadership
from tests.contract.member import Member
from tests.contract.stale_leader import STALE, TTL_S

pytestmark = pytest.mark.etcd
ATTEMPTS = int(os.environ.get("EBBTIDE_STALE_WRITES", "1000"))
KEYS = Keys()
ORDER = KEYS.order("shop", "uid-1")


@pytest.fixture
async def stale(request: pytest.FixtureRequest, etcd: Member) -> AsyncIterator[Any]:
    """A leader in a process of its own; it leads."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.contract.stale_leader", request.param, etcd.url, str(ATTEMPTS)),
        stdout=subprocess.PIPE,
    )
    try:
        await said_by(process)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def said_by(process: Any) -> dict[str, int]:
    async with asyncio.timeout(30 + ATTEMPTS / 50):
        line = await process.stdout.readline()
    said: dict[str, int] = json.loads(line)
    return said


@pytest.mark.timeout(120 + ATTEMPTS // 50)
@pytest.mark.parametrize("stale", ["Gateway", "Etcd3"], indirect=True)
async def test_no_write_of_a_leader_that_slept_past_its_lease_is_accepted(
    stale: Any, etcd: Member, record_property: Any
) -> None:
    with EtcdClient([etcd.url]) as client:
        await until(lambda: client.get(ORDER) is not None)
        stale.send_signal(signal.SIGSTOP)
        await until(lambda: client.get(KEYS.leader) is None)  # its lease, which nobody renews
        asleep = client.range(KEYS.leader).revision
        store = Gateway([etcd.url])
        fresh = Leadership(store, KEYS, 60)
        epoch = await fresh.take("fresh")
        stale.send_signal(signal.SIGCONT)
        reply = asyncio.create_task(said_by(stale))
        written = 0
        while not reply.done():
            await fresh.write([Put(ORDER, b"fresh %d" % written)])
            written += 1
        counts = await reply
        changes = await everything_after(store, asleep)
        await store.close()
    record_property("fencing", f"{counts} beside {written} writes of the new leader, epoch {epoch}")
    assert counts["before"] > 0
    assert counts["attempts"] >= ATTEMPTS
    assert counts["refused"] == counts["attempts"]
    assert (counts["accepted"], counts["unanswered"]) == (0, 0)
    # Not by the leader's own account only: etcd's history has no trace of it.
    values = [change.key_value.value for change in changes if isinstance(change, Changed)]
    assert len(values) == written + 1
    assert STALE not in values


@pytest.mark.parametrize("adapter", [Gateway, Etcd3])
async def test_no_write_is_accepted_once_the_lease_is_revoked(adapter: Any, shared_etcd: Member) -> None:
    """Also before anybody else leads."""
    store = adapter([shared_etcd.url])
    keys = Keys(f"/fencing-{adapter.__name__}")
    leadership = Leadership(store, keys, TTL_S)
    epoch = await leadership.take("me")
    lease = leadership._lease
    await store.revoke(lease)
    for _ in range(20):
        leadership.epoch, leadership._lease = epoch, lease
        with pytest.raises(Deposed):
            await leadership.write([Put(keys.order("shop", "uid-1"), STALE)])
    assert await store.get(keys.order("shop", "uid-1")) is None
    await store.close()


async def everything_after(store: Gateway, revision: int) -> list[Any]:
    """Return what etcd's history has under the protocol's prefix, up to now."""
    end = await store.transact([], [Put(f"{KEYS.prefix}/end", b"end")])
    assert end is not None
    changes: list[Any] = []
    async for batch in store.watch(f"{KEYS.prefix}/", revision):
        changes += (change for change in batch if change.revision < end)
        if any(change.revision >= end for change in batch):
            return changes
    raise AssertionError("a watch does not end")


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 (other processes bring it about)
            await asyncio.sleep(0.02)
