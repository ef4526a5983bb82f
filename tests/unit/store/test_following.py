"""A watch that does not tell what we wrote is followed over a second connection, and nothing is told twice."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide.etcd.errors import EtcdError, TimedOut, Unauthenticated, Unavailable
from ebbtide.etcd.messages import Changed, Delete, KeyValue, Put, RangeResult
from ebbtide.etcd.wire import WatchAnswer, WatchTarget
from ebbtide_operator.store.following import Follower

PREFIX = "/w/"


class Connection:
    """One connection of a watch, whose other end is the test."""

    def __init__(self, target: WatchTarget) -> None:
        self.start_revision = target.start_revision
        self.url = "http://etcd"
        self.closed = False
        self.blamed: EtcdError | None = None
        self._said: asyncio.Queue[Any] = asyncio.Queue()

    def confirm(self, revision: int) -> None:
        self._said.put_nowait(WatchAnswer(1, revision, created=True))

    def progress(self, revision: int) -> None:
        self._said.put_nowait(WatchAnswer(1, revision))

    def tell(self, *revisions: int) -> None:
        events = tuple(Changed(KeyValue(f"{PREFIX}a", b"%d" % one, 1, one), one) for one in revisions)
        self._said.put_nowait(WatchAnswer(1, revisions[-1], events=events))

    def refuse(self, reason: str) -> None:
        self._said.put_nowait(WatchAnswer(1, 0, created=True, canceled=True, cancel_reason=reason))

    def fail(self, error: Exception) -> None:
        self._said.put_nowait(error)

    async def next(self, patience_s: float) -> list[WatchAnswer]:
        try:
            async with asyncio.timeout(patience_s):
                said = await self._said.get()
        except TimeoutError as error:
            raise TimedOut("silent") from error
        if isinstance(said, Exception):
            raise said
        return [said]


class Stand:
    """A follower, the connections that it opened, and what it told."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.told: list[int] = []
        self.listed = RangeResult((), 0)
        self.follower = Follower(self._connect, self._list, random.Random(1), confirm_s=5.0, inactivity_s=5.0)

    def write(self, revision: int, key: str = f"{PREFIX}a") -> None:
        self.follower.wrote([Put(key, b"")], revision)

    async def opened(self, count: int) -> Connection:
        await until(lambda: len(self.connections) >= count)
        return self.connections[count - 1]

    async def run(self) -> None:
        async with contextlib.aclosing(self.follower.follow(PREFIX, 10)) as batches:
            async for batch in batches:
                self.told += [change.revision for change in batch]

    async def _list(self, _prefix: str) -> RangeResult:
        return self.listed

    @contextlib.asynccontextmanager
    async def _connect(self, target: WatchTarget) -> AsyncIterator[Connection]:
        connection = Connection(target)
        self.connections.append(connection)
        try:
            yield connection
        except EtcdError as error:
            connection.blamed = error
            raise
        finally:
            connection.closed = True


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (several tasks bring it about)
            await asyncio.sleep(0.001)


@pytest.fixture
async def stand(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr("ebbtide_operator.store.doubt.PATIENCE_S", 0.02)
    monkeypatch.setattr("ebbtide_operator.store.doubt.AGAIN_S", 0.02)
    # On a busy machine every timer is late.
    monkeypatch.setattr("ebbtide_operator.store.lanes.LATE_S", 60.0)
    stand = Stand()
    task = asyncio.create_task(stand.run())
    (await stand.opened(1)).confirm(10)
    await until(lambda: stand.follower.watching)
    yield stand
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert all(connection.closed for connection in stand.connections)


async def doubted(stand: Any, opened: int = 2) -> tuple[Connection, Connection]:
    stand.write(11)
    return stand.connections[0], await stand.opened(opened)


async def test_a_write_that_is_not_told_opens_a_second_connection_from_where_the_first_stood(stand: Any) -> None:
    first = stand.connections[0]
    first.tell(11)
    await until(lambda: stand.told == [11])
    stand.write(12)
    second = await stand.opened(2)
    assert second.start_revision == 12
    assert not first.closed
    second.confirm(12)
    second.tell(12)
    await until(lambda: first.closed)
    second.tell(13)
    await until(lambda: stand.told == [11, 12, 13])
    assert stand.follower.watching


async def test_the_first_connection_stays_where_it_lives(stand: Any) -> None:
    first, second = await doubted(stand)
    first.tell(11)
    await until(lambda: second.closed)
    first.tell(12)
    await until(lambda: stand.told == [11, 12])
    assert not first.closed


async def test_what_both_tell_is_told_once(stand: Any) -> None:
    first, second = await doubted(stand)
    second.confirm(12)
    second.tell(11)
    first.tell(11, 12)
    second.tell(11, 12)
    second.tell(13)
    first.tell(13)
    await until(lambda: stand.told[-1:] == [13])
    assert stand.told == [11, 12, 13]


async def test_the_second_takes_over_where_the_first_breaks(stand: Any) -> None:
    first, second = await doubted(stand)
    second.confirm(11)
    first.fail(Unavailable("broken"))
    second.tell(11)
    await until(lambda: stand.told == [11])
    assert first.closed
    assert len(stand.connections) == 2
    assert stand.follower.watching


@pytest.mark.parametrize("error", [Unavailable("refused"), TimedOut("silent"), EtcdError("strange")])
async def test_a_second_connection_that_fails_harms_nobody(stand: Any, error: EtcdError) -> None:
    first, second = await doubted(stand)
    second.fail(error)
    await until(lambda: second.closed)
    assert stand.follower.watching
    first.tell(11)
    await until(lambda: stand.told == [11])
    assert not first.closed


async def test_a_new_write_replaces_a_second_connection_that_is_silent_too(stand: Any) -> None:
    _first, second = await doubted(stand)
    stand.write(12)
    third = await stand.opened(3)
    assert second.closed
    third.confirm(12)
    third.tell(11, 12)
    await until(lambda: stand.told == [11, 12])


async def test_writes_that_the_watch_cannot_tell_raise_no_doubt(stand: Any) -> None:
    first = stand.connections[0]
    stand.write(11, "/elsewhere/a")
    stand.follower.wrote([Delete(f"{PREFIX}a")], 12)
    stand.follower.wrote([], 13)
    (watch,) = stand.follower._watches
    assert watch.doubt.due_at is None
    assert stand.connections == [first]
    stand.write(14)
    assert watch.doubt.due_at is not None


async def test_a_first_connection_that_only_says_that_it_lives_is_believed(stand: Any) -> None:
    first, second = await doubted(stand)
    first.progress(10)
    await until(lambda: second.closed)
    assert not first.closed


async def test_what_is_wrong_with_an_answer_is_told_to_whoever_opened_the_connection(stand: Any) -> None:
    """He logs in anew, or goes to another endpoint."""
    stand.connections[0].fail(Unavailable("broken"))
    second = await stand.opened(2)
    second.refuse("etcdserver: invalid auth token")
    third = await stand.opened(3)
    assert isinstance(second.blamed, Unauthenticated)
    third.confirm(10)
    await until(lambda: stand.follower.watching)
    _, fourth = await doubted(stand, 4)
    fourth.refuse("etcdserver: invalid auth token")
    await until(lambda: fourth.closed)
    assert isinstance(fourth.blamed, Unauthenticated)
    assert not third.closed
    third.tell(11)
    await until(lambda: stand.told == [11])


async def test_a_login_that_was_forgotten_is_renewed_without_a_pause_and_refused_again_with_one(
    stand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def paused(*_: object) -> float:
        pauses.append(0.0)
        return 0.0

    monkeypatch.setattr("ebbtide_operator.store.following.Backoff.next_s", paused)
    paused_before: list[int] = []
    for number, failure in enumerate((Unavailable("broken"), None, None, Unavailable("broken"), None), 1):
        connection = await stand.opened(number)
        paused_before.append(len(pauses))
        if failure is None:
            connection.refuse("etcdserver: invalid auth token")
        else:
            connection.fail(failure)
    (await stand.opened(6)).confirm(10)
    await until(lambda: stand.follower.watching)
    assert [*paused_before, len(pauses)] == [0, 1, 1, 2, 3, 3]


async def test_a_mistake_of_ours_is_not_swallowed() -> None:
    stand = Stand()
    task = asyncio.create_task(stand.run())
    (await stand.opened(1)).fail(KeyError("a bug"))
    with pytest.raises(KeyError):
        await asyncio.wait_for(task, 20)
