import asyncio
import copy
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ebbtide_operator.cluster.api import ApiError
from ebbtide_operator.cluster.leader import LeaderElection, Timing


class MemoryLease:
    """The Lease as an API server keeps it: writes compare the resourceVersion."""

    def __init__(self) -> None:
        self.object: dict[str, Any] = {}
        self.version = 0
        self.writes: list[str] = []
        self.down = False
        self.hangs = False

    @property
    def holder(self) -> str:
        holder: str = self.object["spec"]["holderIdentity"] if self.object else ""
        return holder

    async def get(self) -> dict[str, Any]:
        await self._arrive()
        if not self.object:
            raise ApiError(404, "NotFound", "lease")
        return copy.deepcopy(self.object)

    async def create(self, spec: dict[str, Any]) -> dict[str, Any]:
        await self._arrive()
        if self.object:
            raise ApiError(409, "AlreadyExists", "lease")
        return self._store({"metadata": {"name": "lease"}, "spec": spec})

    async def replace(self, lease: dict[str, Any]) -> dict[str, Any]:
        await self._arrive()
        if lease["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "lease")
        return self._store(lease)

    async def _arrive(self) -> None:
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.down:
            raise ApiError(503, "ServiceUnavailable", "down")

    def _store(self, lease: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.object = copy.deepcopy(lease)
        self.object["metadata"]["resourceVersion"] = str(self.version)
        self.writes.append(self.holder)
        return copy.deepcopy(self.object)


class Time:
    """A clock that stands until it is advanced, and then wakes its sleepers in their order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, self._count, future))
        await future

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self.now = max(self.now, at)
            if not future.done():
                future.set_result(None)
            await settle()
        self.now = end
        await settle()


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


class Replica:
    def __init__(self, lease: MemoryLease, clock: Time, name: str) -> None:
        self.name = name
        self.leading = False
        self.terms = 0
        self.finish = asyncio.Event()
        self.election = LeaderElection(lease, name, Timing(15), clock, clock.sleep)

    async def lead(self) -> None:
        self.leading = True
        self.terms += 1
        self.finish.clear()
        try:
            await self.finish.wait()
        finally:
            self.leading = False


@asynccontextmanager
async def running(*replicas: Replica) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(one.election.run(one.lead)) for one in replicas]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_of_two_leads_and_keeps_leading() -> None:
    lease, clock = MemoryLease(), Time()
    one, two = Replica(lease, clock, "one"), Replica(lease, clock, "two")
    async with running(one, two):
        await clock.advance(1)
        assert (one.leading, two.leading) == (True, False)
        await clock.advance(300)
        assert (one.leading, one.terms, two.terms) == (True, 1, 0)
        assert one.election.holds
        assert not two.election.holds


async def test_a_follower_knows_how_long_the_leader_is_silent() -> None:
    lease, clock = MemoryLease(), Time()
    one, two = Replica(lease, clock, "one"), Replica(lease, clock, "two")
    poll_s = Timing(15).retry_s
    async with running(one):
        await clock.advance(1)
        async with running(two):
            await clock.advance(60)
            assert one.leading
            assert two.election.age_s <= 2 * poll_s
            lease.down = True
            await clock.advance(9)
            assert two.election.age_s >= 9
            lease.down = False
            await clock.advance(3 * poll_s)
            assert two.election.age_s <= 2 * poll_s


async def test_a_stopped_leader_gives_the_lease_back_at_once() -> None:
    lease, clock = MemoryLease(), Time()
    one, two = Replica(lease, clock, "one"), Replica(lease, clock, "two")
    async with running(one):
        await clock.advance(1)
        other = asyncio.create_task(two.election.run(two.lead))
        await clock.advance(1)
        assert one.leading
    assert lease.holder == ""
    await clock.advance(Timing(15).retry_s)
    assert two.leading
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_planning_has_ended_before_the_lease_is_free() -> None:
    lease, clock = MemoryLease(), Time()
    holder_at_end: list[str] = []

    async def lead() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # some work to end
            holder_at_end.append(lease.holder)

    election = LeaderElection(lease, "one", Timing(15), clock, clock.sleep)
    task = asyncio.create_task(election.run(lead))
    await clock.advance(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert holder_at_end == ["one"]
    assert lease.holder == ""


async def test_a_leader_that_cannot_renew_stops_before_another_may_start() -> None:
    lease, clock = MemoryLease(), Time()
    one = Replica(lease, clock, "one")
    async with running(one):
        await clock.advance(1)
        lease.down = True
        await clock.advance(Timing(15).renew_deadline_s - 2)
        assert one.leading
        await clock.advance(Timing(15).retry_s + 1)
        assert not one.leading
        lease.down = False
        await clock.advance(3)
        assert one.leading


async def test_a_dead_leader_is_followed_when_its_lease_has_run_out() -> None:
    lease, clock = MemoryLease(), Time()
    one, two = Replica(lease, clock, "one"), Replica(lease, clock, "two")
    async with running(two):
        async with running(one):
            await clock.advance(0)
            lease.object["spec"]["holderIdentity"] = "dead"
            lease.object["spec"]["leaseDurationSeconds"] = 15
            lease.object["metadata"]["resourceVersion"] = "77"
            await clock.advance(3)
            assert not one.leading
        await clock.advance(9)
        assert not two.leading
        await clock.advance(9)
        assert two.leading
    assert lease.object["spec"]["leaseTransitions"] >= 1


async def test_times_in_the_lease_are_not_believed() -> None:
    lease, clock = MemoryLease(), Time()
    await lease.create(
        {"holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": "1999-01-01T00:00:00.000000Z"}
    )
    one = Replica(lease, clock, "one")
    async with running(one):
        await clock.advance(14)
        assert not one.leading
        await clock.advance(4)
        assert one.leading


async def test_the_same_identity_takes_its_lease_up_at_once() -> None:
    lease, clock = MemoryLease(), Time()
    await lease.create({"holderIdentity": "one", "leaseDurationSeconds": 15, "acquireTime": "t", "leaseTransitions": 4})
    one = Replica(lease, clock, "one")
    async with running(one):
        await clock.advance(0)
        assert one.leading
        assert lease.object["spec"]["leaseTransitions"] == 4
        assert lease.object["spec"]["acquireTime"] == "t"


async def test_a_process_that_was_stopped_past_its_lease_knows_it_does_not_hold_it() -> None:
    lease, clock = MemoryLease(), Time()
    one = Replica(lease, clock, "one")
    async with running(one):
        await clock.advance(1)
        assert one.election.holds
        clock.now += 60  # nothing of this process ran meanwhile
        assert not one.election.holds


async def test_a_planner_that_ends_gives_the_lease_back_and_campaigns_again() -> None:
    lease, clock = MemoryLease(), Time()
    one = Replica(lease, clock, "one")
    async with running(one):
        await clock.advance(1)
        one.finish.set()
        await settle()
        assert lease.holder == ""
        await clock.advance(Timing(15).retry_s)
        assert one.leading
        assert one.terms == 2


async def test_an_error_of_the_planner_comes_out_and_the_lease_is_free() -> None:
    lease, clock = MemoryLease(), Time()

    async def lead() -> None:
        raise RuntimeError("broken")

    election = LeaderElection(lease, "one", Timing(15), clock, clock.sleep)
    with pytest.raises(ExceptionGroup, match="unhandled") as caught:
        await election.run(lead)
    assert caught.group_contains(RuntimeError, match="broken")
    assert lease.holder == ""


async def test_a_hanging_api_server_ends_the_lead_too() -> None:
    lease = MemoryLease()
    ended = asyncio.Event()

    async def lead() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    election = LeaderElection(lease, "one", Timing(0.6))
    task = asyncio.create_task(election.run(lead))
    await eventually(lambda: election.holds)
    lease.hangs = True
    await asyncio.wait_for(ended.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def eventually(condition: Callable[[], bool], pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await pause(0.005)
