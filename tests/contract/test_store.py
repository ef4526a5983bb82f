"""One suite for the store port: the memory model and both ways to etcd must not differ."""

import asyncio
import contextlib
import itertools
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide.etcd import EtcdClient
from ebbtide_operator.ports import (
    Changed,
    Compare,
    Delete,
    LeaseEnded,
    Put,
    Removed,
    Resync,
    Store,
    StoreUnavailable,
)
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from ebbtide_operator.store.memory import MemoryStore
from ebbtide_operator.store.survey import Survey
from tests.contract.member import program, version_of


@pytest.fixture(
    params=[
        MemoryStore,
        pytest.param(Gateway, marks=pytest.mark.etcd),
        pytest.param(Etcd3, marks=pytest.mark.etcd),
    ]
)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param is MemoryStore:
        yield MemoryStore()
        return
    store = request.param([request.getfixturevalue("shared_etcd").url])
    yield store
    await store.close()


@pytest.fixture
def prefix() -> str:
    return f"/test/{uuid.uuid4().hex}/"


async def put(store: Any, key: str, value: bytes = b"v", lease: int = 0) -> int:
    revision = await store.transact([], [Put(key, value, lease)])
    assert isinstance(revision, int)
    return revision


class Watching:
    """Collect what a watch yields, and wait for it."""

    def __init__(self, store: Store, prefix: str, after: int) -> None:
        self.batches: list[Any] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run(store.watch(prefix, after)))

    async def _run(self, batches: Any) -> None:
        async with contextlib.aclosing(batches):
            async for batch in batches:
                self.batches.append(tuple(batch))
                self._news.set()

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(20):
            while len(self.changes) < count:
                self._news.clear()
                await self._news.wait()
        return self.changes

    @property
    def changes(self) -> list[Any]:
        return list(itertools.chain.from_iterable(self.batches))

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *args: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_missing_key_is_none(store: Any, prefix: str) -> None:
    assert await store.get(prefix + "a") is None


async def test_a_key_is_read_as_it_was_written(store: Any, prefix: str) -> None:
    value = bytes(range(256))
    first = await put(store, prefix + "a", b"old")
    second = await put(store, prefix + "a", value)
    found = await store.get(prefix + "a")
    assert (found.key, found.value, found.create_revision, found.mod_revision, found.lease) == (
        prefix + "a",
        value,
        first,
        second,
        0,
    )


async def test_a_range_is_sorted_and_has_its_prefix_only(store: Any, prefix: str) -> None:
    revision = max([await put(store, prefix + name) for name in ("b/2", "b/1", "b", "c", "b/10", "b/é")])
    key_values, at = await store.range(prefix + "b/")
    assert [item.key.removeprefix(prefix) for item in key_values] == ["b/1", "b/10", "b/2", "b/é"]
    assert at >= revision


async def test_a_long_range_comes_in_pages_without_a_gap(
    store: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ebbtide_operator.store.etcd.PAGE", 7)
    wanted = [f"{prefix}{number:03}" for number in range(50)]
    for start in range(0, 50, 25):
        await store.transact([], [Put(key, b"") for key in wanted[start : start + 25]])
    key_values, _ = await store.range(prefix)
    assert [item.key for item in key_values] == wanted


async def test_a_transaction_applies_all_or_nothing(store: Any, prefix: str) -> None:
    revision = await put(store, prefix + "leader")
    refused = await store.transact(
        [Compare(prefix + "leader", create_revision=revision), Compare(prefix + "a", mod_revision=1)],
        [Put(prefix + "a", b"1"), Delete(prefix + "leader")],
    )
    assert refused is None
    assert await store.get(prefix + "a") is None
    applied = await store.transact(
        [Compare(prefix + "leader", create_revision=revision), Compare(prefix + "a", mod_revision=0)],
        [Put(prefix + "a", b"1"), Delete(prefix + "leader")],
    )
    assert applied is not None
    assert (await store.get(prefix + "a")).mod_revision == applied
    assert await store.get(prefix + "leader") is None


async def test_a_transaction_may_ask_which_lease_a_key_has(store: Any, prefix: str) -> None:
    lease = await store.grant(60)
    await put(store, prefix + "a", lease=lease)
    assert await store.transact([Compare(prefix + "a", lease=lease + 1)], [Put(prefix + "b", b"")]) is None
    assert await store.transact([Compare(prefix + "a", lease=lease)], [Put(prefix + "b", b"")]) is not None
    assert await store.transact([Compare(prefix + "b", lease=0)], [Delete(prefix + "b")]) is not None


async def test_a_prefix_is_deleted_as_a_whole_and_nothing_else(store: Any, prefix: str) -> None:
    for name in ("a/1", "a/2", "ab"):
        await put(store, prefix + name)
    await store.transact([], [Delete(prefix + "a/", prefix=True)])
    key_values, _ = await store.range(prefix)
    assert [item.key for item in key_values] == [prefix + "ab"]


async def test_a_key_made_again_has_another_create_revision(store: Any, prefix: str) -> None:
    first = await put(store, prefix + "a")
    await store.transact([], [Delete(prefix + "a")])
    second = await put(store, prefix + "a")
    found = await store.get(prefix + "a")
    assert found.create_revision == found.mod_revision == second > first
    assert await store.transact([Compare(prefix + "a", create_revision=first)], [Put(prefix + "a", b"")]) is None


async def test_a_key_may_not_be_written_twice_in_one_transaction(store: Any, prefix: str) -> None:
    with pytest.raises(StoreUnavailable, match="duplicate key"):
        await store.transact([], [Put(prefix + "a", b""), Delete(prefix + "a")])
    assert await store.get(prefix + "a") is None


async def test_a_revoked_lease_takes_its_keys(store: Any, prefix: str) -> None:
    lease = await store.grant(60)
    await put(store, prefix + "a", lease=lease)
    await put(store, prefix + "b")
    assert (await store.get(prefix + "a")).lease == lease
    await store.revoke(lease)
    await store.revoke(lease)
    assert await store.get(prefix + "a") is None
    assert await store.get(prefix + "b") is not None


async def test_a_key_written_without_its_lease_outlives_it(store: Any, prefix: str) -> None:
    lease = await store.grant(60)
    await put(store, prefix + "a", lease=lease)
    await put(store, prefix + "a", b"final")
    await store.revoke(lease)
    assert (await store.get(prefix + "a")).value == b"final"


async def test_an_ended_lease_takes_no_key(store: Any, prefix: str) -> None:
    lease = await store.grant(60)
    await store.revoke(lease)
    with pytest.raises(LeaseEnded):
        await put(store, prefix + "a", lease=lease)
    assert await store.get(prefix + "a") is None
    assert not await store.keep_alive(lease)


async def test_a_lease_may_be_asked_for_by_id(store: Any, prefix: str) -> None:
    wanted = uuid.uuid4().int >> 65
    assert await store.grant(60, lease=wanted) == wanted
    assert await store.grant(60, lease=wanted) == 0
    await put(store, prefix + "a", lease=wanted)
    assert await store.keep_alive(wanted)
    await store.revoke(wanted)
    assert await store.grant(60, lease=wanted) == wanted


async def test_an_unkept_lease_expires_and_a_kept_one_does_not(store: Any, prefix: str) -> None:
    # Long enough to be kept on a machine that is busy for seconds.
    kept, left = await store.grant(4), await store.grant(4)
    revision = await put(store, prefix + "kept", lease=kept)
    await put(store, prefix + "left", lease=left)

    async def keep() -> None:
        while True:
            assert await store.keep_alive(kept)
            await asyncio.sleep(0.3)

    keeping = asyncio.create_task(keep())
    async with Watching(store, prefix, revision) as watching:
        changes = await watching.until(2)
    keeping.cancel()
    assert isinstance(changes[1], Removed)
    assert changes[1].key == prefix + "left"
    assert not await store.keep_alive(left)
    assert (await store.get(prefix + "kept")).lease == kept


async def test_many_leases_are_renewed_together_and_the_ended_ones_are_named(store: Any, prefix: str) -> None:
    # Long enough to be kept on a machine that is busy for seconds.
    kept, ended, left = await store.grant(4), await store.grant(60), await store.grant(4)
    await put(store, prefix + "kept", lease=kept)
    await put(store, prefix + "left", lease=left)
    await store.revoke(ended)
    async with asyncio.timeout(20):
        while await store.get(prefix + "left") is not None:
            assert await store.keep_all_alive([kept, ended]) == {ended}
            await asyncio.sleep(0.3)
    assert await store.get(prefix + "kept") is not None
    assert await store.keep_all_alive({kept, ended, left}) == {ended, left}


async def test_leases_beyond_one_request_are_renewed_too(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebbtide_operator.store.etcd.BATCH", 7)
    leases = [await store.grant(60) for _ in range(20)]
    await store.revoke(leases[9])
    assert await store.keep_all_alive([*leases, 4711]) == {leases[9], 4711}
    assert await store.keep_all_alive([]) == frozenset()


async def test_a_watch_tells_everything_after_its_revision(store: Any, prefix: str) -> None:
    before = await put(store, prefix + "before")
    first = await put(store, prefix + "a", b"1")
    async with Watching(store, prefix, before) as watching:
        await watching.until(1)
        second = await put(store, prefix + "a", b"2")
        await put(store, prefix[:-1] + "-other/a")
        third = await store.transact([], [Delete(prefix + "a")])
        changes = await watching.until(3)
    assert [change.revision for change in changes] == [first, second, third]
    assert [change.key_value.value for change in changes[:2]] == [b"1", b"2"]
    assert changes[0].key_value.create_revision == changes[1].key_value.create_revision == first
    assert changes[2] == Removed(prefix + "a", third)


async def test_one_transaction_is_one_batch(store: Any, prefix: str) -> None:
    start = await put(store, prefix + "x")
    async with Watching(store, prefix, start) as watching:
        await store.transact([], [Put(prefix + "a", b""), Put(prefix + "b", b""), Delete(prefix + "x")])
        await watching.until(3)
    assert len(watching.batches) == 1
    assert {type(change) for change in watching.batches[0]} == {Changed, Removed}


async def test_a_watch_from_before_a_compaction_gets_everything_anew(
    store: Any, prefix: str, request: pytest.FixtureRequest
) -> None:
    start = await put(store, prefix + "gone")
    await store.transact([], [Delete(prefix + "gone")])
    await put(store, prefix + "kept")
    last = await put(store, prefix + "kept", b"2")
    if isinstance(store, MemoryStore):
        store.compact(last)
    else:
        await asyncio.to_thread(compact, request.getfixturevalue("shared_etcd").url, last)
    async with Watching(store, prefix, start) as watching:
        (resync,) = await watching.until(1)
        assert isinstance(resync, Resync)
        assert [(item.key, item.value) for item in resync.key_values] == [(prefix + "kept", b"2")]
        assert resync.revision >= last
        assert not resync.restarted
        await put(store, prefix + "later")
        changes = await watching.until(2)
    assert changes[1].key_value.key == prefix + "later"


def compact(url: str, revision: int) -> None:
    body = b'{"revision":"%d","physical":true}' % revision
    with EtcdClient([url]) as client:
        client._transport.call("compact", "/v3/kv/compaction", body, write=True)


async def test_two_watches_do_not_disturb_each_other(store: Any, prefix: str) -> None:
    start = await put(store, prefix + "x")
    async with Watching(store, prefix + "a/", start) as one, Watching(store, prefix + "b/", start) as two:
        await put(store, prefix + "a/1")
        await put(store, prefix + "b/1")
        await one.until(1)
        await two.until(1)
    assert len(one.changes) == len(two.changes) == 1


async def test_concurrent_transactions_on_one_key_have_one_winner(store: Any, prefix: str) -> None:
    async def claim(number: int) -> Any:
        return await store.transact([Compare(prefix + "k", create_revision=0)], [Put(prefix + "k", b"%d" % number)])

    results = await asyncio.gather(*(claim(number) for number in range(8)))
    winners = [number for number, revision in enumerate(results) if revision is not None]
    assert len(winners) == 1
    assert (await store.get(prefix + "k")).value == b"%d" % winners[0]


async def test_says_its_version(store: Any) -> None:
    shown: list[Any] = []
    assert await Survey(store, lambda status, fault: shown.append((status.version, fault))).look()
    ((version, fault),) = shown
    if isinstance(store, MemoryStore) or version_of(program()) >= (3, 5):
        assert fault == ""
    else:
        assert fault.startswith("older than 3.5")
    assert bool(re.fullmatch(r"3\.\d+\.\d+.*", version)) != isinstance(store, MemoryStore)


async def test_says_how_much_room_it_takes(store: Any, prefix: str) -> None:
    before = await store.status()
    for number in range(4):
        await put(store, f"{prefix}{number}", b"x" * 512 * 1024)
    async with asyncio.timeout(10):
        # etcd writes to its file in batches.
        while (after := await store.status()).file < before.file + 1024 * 1024:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    if isinstance(store, Gateway):
        assert 0 < after.in_use <= after.file
        # Told from 3.6 on.
        assert (after.quota is None) == (version_of(program()) < (3, 6))
        assert after.quota is None or after.file < after.quota
