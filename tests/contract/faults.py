"""Faults of a real etcd and of the way to it, each as one round that a store has to survive."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ebbtide.etcd import EtcdClient, EtcdError, Overloaded
from tests.contract.counting import Count, OwnWriter, Reader, Writer, settle, told
from tests.contract.member import Member, three
from tests.contract.proxy import Proxy

FLAGS = ("--watch-progress-notify-interval=1s",)
TIMEOUT_S = 1.0
INACTIVITY_S = 3.0
"""Seconds of silence after which a watch connects anew; 20 in production."""
MIB = 1024 * 1024
STEADY = 40
"""Writes between two faults."""


def login(credentials: dict[str, str]) -> dict[str, Any]:
    """Return credentials as the operator's adapters take them: these ask for the password at each login."""
    return {name: (lambda value=value: value) if name == "password" else value for name, value in credentials.items()}


class Scene:
    """Members, the ways to them, a writer beside the faults, and the reader that is to survive them."""

    def __init__(self, members: list[Member], adapter: Any, fault: "Fault") -> None:
        self.members = members
        self.proxies = [Proxy(member.port) for member in members] if fault.proxied else []
        self.urls = [member.url for member in members]
        ways = [proxy.url for proxy in self.proxies] or self.urls
        self.store = adapter(ways, timeout_s=TIMEOUT_S, inactivity_s=INACTIVITY_S, **login(fault.credentials))
        self.reader = Reader(self.store)
        self.writer = OwnWriter(self.store, self.urls) if fault.own else Writer(self.urls, fault.credentials)
        self.round = itertools.count()

    async def start(self) -> None:
        # The reader first: what is written and deleted before its first list is told by nobody.
        await self.reader.start()
        self.writer.start()

    @property
    def member(self) -> Member:
        (member,) = self.members
        return member

    @property
    def proxy(self) -> Proxy:
        (proxy,) = self.proxies
        return proxy

    async def written(self, count: int) -> None:
        """Wait until so many more writes were acknowledged."""
        wanted = len(self.writer.writes) + count
        await until(lambda: len(self.writer.writes) >= wanted)

    async def failing(self) -> None:
        """Wait until the writer notices the fault."""
        before = self.writer.failures
        await until(lambda: self.writer.failures > before)


async def killed(scene: Scene) -> float:
    await asyncio.to_thread(scene.member.kill)
    await scene.failing()
    await asyncio.to_thread(scene.member.start)
    return time.monotonic()


async def frozen(scene: Scene) -> float:
    scene.member.freeze()
    await scene.failing()
    # By turns shorter and longer than the store waits for a sign of life.
    await asyncio.sleep(INACTIVITY_S + 2 * TIMEOUT_S if next(scene.round) % 2 else 0.2)
    thawed_at = time.monotonic()
    scene.member.thaw()
    return thawed_at


async def emptied(scene: Scene) -> float:
    await asyncio.to_thread(scene.writer.pause)
    # What was not told yet is lost with the data.
    await until(lambda: all(told(scene.reader, write) for write in scene.writer.writes))
    await asyncio.to_thread(scene.member.kill)
    await asyncio.to_thread(scene.member.wipe)
    scene.writer.resume()
    await scene.failing()
    await asyncio.to_thread(scene.member.start)
    return time.monotonic()


async def compacted(scene: Scene) -> float:
    scene.proxy.refusing = True
    scene.proxy.cut()
    await until(lambda: not scene.store.watching)
    await scene.written(STEADY)
    await asyncio.to_thread(compact, scene.urls[0])
    await scene.written(5)
    scene.proxy.refusing = False
    return time.monotonic()


async def cut(scene: Scene) -> float:
    # The second and the third connection break in the middle of what there is to catch up with.
    scene.proxy.cuts = [300, 3_000, 6_000]
    scene.proxy.refusing = True
    scene.proxy.cut()
    await scene.written(STEADY)
    scene.proxy.refusing = False
    return time.monotonic()


async def slow(scene: Scene) -> float:
    scene.proxy.delay_s = 0.3
    await scene.written(2 * STEADY)
    scene.proxy.delay_s = 0.0
    return time.monotonic()


async def silent(scene: Scene) -> float:
    """The way swallows everything and breaks nothing; connections that lost bytes stay mute."""
    scene.proxy.silent = True
    await scene.written(STEADY)
    scene.proxy.silent = False
    return time.monotonic()


async def silent_for_us(scene: Scene) -> float:
    """The same where the store under test writes as well: nobody hears the answers either."""
    scene.proxy.silent = True
    await scene.failing()
    scene.proxy.silent = False
    return time.monotonic()


async def deposed(scene: Scene) -> float:
    """The leader of three members dies; it is back in the next round."""
    for member in scene.members:
        if not member.running:
            await asyncio.to_thread(member.start)
    leader = await asyncio.to_thread(leader_of, scene.members)
    await asyncio.to_thread(leader.kill)
    return time.monotonic()


async def full(scene: Scene) -> float:
    """The database reaches its quota: etcd refuses every write until somebody makes room and says so."""
    url = scene.urls[0]
    await asyncio.to_thread(fill, url)
    await scene.failing()
    await asyncio.to_thread(empty, url)
    return time.monotonic()


async def no_room(scene: Scene) -> float:
    """The disk is full: etcd ends at the first write that takes more room, and starts once there is some."""
    await asyncio.to_thread(crowd, scene.member)
    await asyncio.to_thread(scene.member.start)
    return time.monotonic()


@dataclass(frozen=True)
class Fault:
    """What happens, and where.

    Attributes:
        harm: Does harm, undoes it, and returns when it was undone (monotonic).
        proxied: The store under test goes through a proxy; another writer does not.
        own: The store under test writes itself.
        clustered: There are three members.
        credentials: Who everybody logs in as.
        flags: Further flags of etcd.
        disk_mib: Its data have a disk of their own, of this size; 0: not.
    """

    harm: Callable[[Scene], Awaitable[float]]
    proxied: bool = False
    own: bool = False
    clustered: bool = False
    credentials: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    disk_mib: int = 0


SILENT = f"silent connections, others write: noticed after {INACTIVITY_S:g} s"
NO_ROOM = "disk full: etcd ends, restart with room"
FAULTS = {
    "SIGKILL, restart with data": Fault(killed),
    "SIGKILL, every login forgotten": Fault(
        killed, credentials={"username": "root", "password": "r"}, flags=("--auth-token=simple",)
    ),
    "SIGSTOP, SIGCONT": Fault(frozen),
    "restart without data": Fault(emptied),
    "compaction while cut off": Fault(compacted, proxied=True),
    "connections cut, also while catching up": Fault(cut, proxied=True),
    "slow connections": Fault(slow, proxied=True),
    "silent connections, own writes": Fault(silent_for_us, proxied=True, own=True),
    SILENT: Fault(silent, proxied=True),
    "database full": Fault(full, flags=(f"--quota-backend-bytes={16 * MIB}",)),
    NO_ROOM: Fault(no_room, disk_mib=256),
    "leader of three members killed": Fault(deposed, clustered=True),
}


async def count(adapter: Any, name: str, rounds: int) -> Count:
    """Let an adapter go through a fault, again and again, and count what that cost."""
    fault = FAULTS[name]
    result = Count(adapter.__name__.lower(), name)
    async with scene_of(adapter, fault) as scene:
        await scene.written(STEADY)
        for _ in range(rounds):
            await until(lambda: scene.store.watching)
            undone_at = await fault.harm(scene)
            await until(lambda: scene.writer.after(undone_at) is not None)  # noqa: B023 (called at once)
            back = scene.writer.after(undone_at)
            assert back is not None
            await until(lambda: back.key in scene.reader.seen_at)  # noqa: B023
            result.resumed_s.append(max(scene.reader.seen_at[back.key] - back.acknowledged_at, 0.0))
            await scene.written(STEADY)
            await asyncio.to_thread(scene.writer.pause)
            result.lost += await settle(scene.reader, scene.writer)
            scene.writer.resume()
            result.rounds += 1
        result.written = len(scene.writer.writes)
        result.seen = sum(told(scene.reader, write) for write in scene.writer.writes)
        result.duplicates = scene.reader.duplicates
    return result


@contextlib.asynccontextmanager
async def scene_of(adapter: Any, fault: Fault) -> AsyncIterator[Scene]:
    flags = (*FLAGS, *fault.flags)
    members = three(*flags) if fault.clustered else [Member(*flags)]
    try:
        for member in members:
            if fault.disk_mib:
                member.confine(fault.disk_mib)
            member.launch()
        for member in members:
            await asyncio.to_thread(member.wait)
        if fault.credentials:
            await asyncio.to_thread(guard, members[0].url, **fault.credentials)
        scene = Scene(members, adapter, fault)
        try:
            await scene.start()
            yield scene
        finally:
            await scene.reader.stop()
            await scene.store.close()
            await asyncio.to_thread(scene.writer.stop)
            for proxy in scene.proxies:
                await asyncio.to_thread(proxy.close)
    finally:
        for member in members:
            member.close()


def compact(url: str) -> None:
    with EtcdClient([url], timeout_s=5) as client:
        administer(client, "kv/compaction", {"revision": str(client.range("/nothing").revision)})


def fill(url: str) -> None:
    with EtcdClient([url], timeout_s=5) as client, contextlib.suppress(Overloaded):
        for number in range(64):
            client.put(f"/ballast/{number}", b"x" * MIB)
        raise AssertionError("there is no quota")


def crowd(member: Member) -> None:
    """Fill its disk, and write until it ends of that."""
    with EtcdClient([member.url], timeout_s=1) as client, member.full_disk():
        deadline = time.monotonic() + 20
        while member.running and time.monotonic() < deadline:
            with contextlib.suppress(EtcdError):
                client.put("/ballast", b"x" * 65536)
        assert not member.running, "there was room"


def empty(url: str) -> None:
    """Do what docs/store.md says to do about a full database."""
    with EtcdClient([url], timeout_s=5) as client:
        client.delete("/ballast/", prefix=True)
        compacted_at = client.range("/nothing").revision
        administer(client, "kv/compaction", {"revision": str(compacted_at), "physical": True})
        administer(client, "maintenance/defragment", {})
        for alarm in administer(client, "maintenance/alarm", {"action": "GET"})["alarms"]:
            administer(client, "maintenance/alarm", {**alarm, "action": "DEACTIVATE"})


def guard(url: str, username: str, password: str) -> None:
    """Let nobody in without a login."""
    with EtcdClient([url], timeout_s=5) as client:
        administer(client, "auth/user/add", {"name": username, "password": password})
        administer(client, "auth/role/add", {"name": "root"})
        administer(client, "auth/user/grant", {"user": username, "role": "root"})
        administer(client, "auth/enable", {})


def administer(client: EtcdClient, path: str, document: dict[str, Any]) -> dict[str, Any]:
    """Make a call that the clients have no need of."""
    body = json.dumps(document).encode()
    answer: dict[str, Any] = json.loads(client._transport.call(path, f"/v3/{path}", body, write=True))
    return answer


def leader_of(members: list[Member]) -> Member:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for member in members:
            if member.running and member.leads:
                return member
        time.sleep(0.02)
    raise AssertionError("no member leads")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (other threads and processes bring it about)
            await asyncio.sleep(0.003)
