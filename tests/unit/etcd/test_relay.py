"""The relay as pods use it: the library's own client, unchanged, and the lines on the wire."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide.etcd import LeaseNotFound, Overloaded, Removed, Resync, Unavailable
from ebbtide.protocol import Report
from ebbtide_operator.ports import Delete, Put
from ebbtide_operator.serve import pulse
from ebbtide_operator.serve import relay as module
from ebbtide_operator.store.memory import MemoryStore
from tests.unit.etcd.relay_stand import ALICE, BOB, KEYS, ORDERS, Follower, Stand, a_report, b64, until

pytestmark = pytest.mark.both_loops

ORDER = KEYS.order(ALICE.namespace, ALICE.uid)
PHASE = KEYS.phase("shop", "deployment", "orders")
REPORT = KEYS.report(ALICE.namespace, ALICE.uid)


@pytest.fixture
async def stand() -> AsyncIterator[Any]:
    async with Stand() as stand:
        yield stand


async def in_thread(function: Any, *arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(function, *arguments, **named)


async def test_the_pods_client_reads_its_order_and_its_phase(stand: Stand) -> None:
    revision = await stand.write(ORDER, b"order")
    await stand.write(PHASE, b"phase")
    with stand.client("alice") as client:
        order = await in_thread(client.get, ORDER)
        assert (order.value, order.mod_revision, order.create_revision) == (b"order", revision, revision)
        assert (await in_thread(client.get, PHASE)).value == b"phase"
        assert await in_thread(client.get, KEYS.order("shop", ALICE.uid)) is not None


async def test_the_pods_client_reports_under_a_lease_of_its_own(stand: Stand) -> None:
    with stand.client("alice") as client:
        lease = await in_thread(client.grant, 30)
        await in_thread(client.put, REPORT, a_report(active=3), lease=lease)
        assert await in_thread(client.keep_alive, lease)
        key_value = await stand.store.get(REPORT)
        assert key_value is not None
        assert key_value.lease == lease
        assert Report.decode(key_value.value).active == 3
        await in_thread(client.put, REPORT, a_report(sequence=2))
        final = await stand.store.get(REPORT)
        assert final is not None
        assert final.lease == 0


async def test_a_lease_that_ended_is_told_as_etcd_does(stand: Stand) -> None:
    with stand.client("alice") as client:
        lease = await in_thread(client.grant, 30)
        await stand.store.revoke(lease)
        assert not await in_thread(client.keep_alive, lease)
        with pytest.raises(LeaseNotFound):
            await in_thread(client.put, REPORT, a_report(), lease=lease)


@pytest.mark.parametrize(("asked", "given"), [(1, 10), (10, 10), (60, 60), (120, 120), (100_000, 120), (-5, 10)])
async def test_the_life_of_a_lease_is_clamped(stand: Stand, asked: Any, given: Any) -> None:
    status, answer = await stand.post("/v3/lease/grant", {"TTL": str(asked)})
    assert (status, answer["TTL"]) == (200, str(given))
    assert stand.store._leases[int(answer["ID"])].ttl_s == given


async def test_another_replica_knows_whose_a_lease_is(stand: Stand) -> None:
    with stand.client("alice") as client:
        lease = await in_thread(client.grant, 30)
        async with Stand() as other:
            other.relay._store = other.state._store = stand.store  # the same etcd
            with other.client("alice") as there:
                await in_thread(there.put, REPORT, a_report(), lease=lease)
                assert await in_thread(there.keep_alive, lease)


async def test_a_lease_that_the_report_carries_is_the_pods(stand: Stand) -> None:
    lease = await stand.store.grant(60)  # granted by etcd itself, before the pod came here
    await stand.store.transact([], [Put(REPORT, a_report(), lease)])
    await stand.state.mirror.reached(stand.store.revision)
    with stand.client("alice") as client:
        assert await in_thread(client.keep_alive, lease)


async def test_a_pod_has_a_bounded_number_of_leases(stand: Stand) -> None:
    with stand.client("alice") as client:
        leases = {await in_thread(client.grant, 120) for _ in range(module.LEASE_SLOTS)}
        assert len(leases) == module.LEASE_SLOTS
        with pytest.raises(Overloaded):
            await in_thread(client.grant, 120)
        await stand.store.revoke(leases.pop())
        await in_thread(client.grant, 120)


async def test_the_pods_client_watches_order_and_phase_over_one_connection(stand: Stand) -> None:
    await stand.write(PHASE, b"before")
    with stand.client("alice") as client:
        follower = Follower(client, [ORDER, PHASE])
        (resync,) = await follower.until(1)
        assert isinstance(resync, Resync)
        assert [item.value for item in resync.key_values] == [b"before"]
        first = await stand.write(ORDER, b"1")
        await follower.until(2)
        second = await stand.write(PHASE, b"2")
        await follower.until(3)
        await stand.store.transact([], [Delete(ORDER)])
        changes = await follower.until(4)
        assert stand.open_watches() == 1
        assert follower.watch.connected
        await follower.end()
    assert [change.revision for change in changes[1:3]] == [first, second]
    assert [change.key_value.value for change in changes[1:3]] == [b"1", b"2"]
    assert isinstance(changes[3], Removed)
    assert changes[3].key == ORDER


async def test_a_watch_goes_on_after_its_replica_stopped(stand: Stand) -> None:
    """Without a loss and without a repetition, also where that replica has not yet seen as much."""
    with stand.client("alice") as client:
        follower = Follower(client, [ORDER])
        await follower.until(1)
        for number in range(3):
            await stand.write(ORDER, b"%d" % number)
            await follower.until(2 + number)
        stand.relay.close()  # this replica stops: the client comes again
        await until(lambda: follower.watch.last_error is not None)
        await stand.write(ORDER, b"while away")
        stand.relay._closing = False
        changes = await follower.until(5)
        await follower.end()
    assert [change.key_value.value for change in changes[1:]] == [b"0", b"1", b"2", b"while away"]


async def test_a_pod_that_saw_more_waits_for_the_mirror(stand: Stand) -> None:
    stand.state.mirror.reach(50)
    async with stand.watch({"key": b64(ORDER), "start_revision": "51"}) as lines:
        assert (await lines.next())["header"] == {"revision": "50"}
    later = asyncio.get_running_loop().call_later(0.05, stand.state.mirror.reach, 60)
    async with stand.watch({"key": b64(ORDER), "start_revision": "61"}) as lines:
        assert (await lines.next())["header"] == {"revision": "60"}
    later.cancel()


async def test_lines_are_etcds(stand: Stand) -> None:
    revision = await stand.write(ORDER, b"1")
    async with stand.watch(
        {"key": b64(ORDER), "watch_id": "7", "start_revision": str(revision)}, {"key": b64(PHASE), "watch_id": "8"}
    ) as lines:
        for watch_id in ("7", "8"):
            assert await lines.next() == {"header": {"revision": str(revision)}, "watch_id": watch_id, "created": True}
        event = await lines.next()
        assert event == {
            "header": {"revision": str(revision)},
            "watch_id": "7",
            "events": [
                {
                    "kv": {
                        "key": b64(ORDER),
                        "value": b64("1"),
                        "create_revision": str(revision),
                        "mod_revision": str(revision),
                    }
                }
            ],
        }
        await stand.store.transact([], [Delete(ORDER)])
        deleted = await lines.next()
        assert deleted["events"] == [{"type": "DELETE", "kv": {"key": b64(ORDER), "mod_revision": str(revision + 1)}}]


async def test_a_quiet_watch_says_that_it_lives(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PROGRESS_S", 0.02)
    async with stand.watch({"key": b64(ORDER)}) as lines:
        assert (await lines.next())["created"]
        assert set(await lines.next()) == {"header"}
        assert set(await lines.next()) == {"header"}


async def test_a_progress_line_never_runs_ahead_of_an_event(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PROGRESS_S", 0.0005)
    start = stand.state.mirror.revision + 1
    seen: list[str] = []
    async with stand.watch({"key": b64(ORDER), "start_revision": str(start)}) as lines:

        async def write() -> None:
            for number in range(100):
                await stand.store.transact([], [Put(ORDER if number % 3 else PHASE, b"%d" % number)])
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        promised = 0
        while not seen or seen[-1] != b64("98"):
            line = await lines.next()
            for event in line.get("events", []):
                assert int(event["kv"]["mod_revision"]) > promised
                seen.append(event["kv"]["value"])
            if "events" not in line and "created" not in line:
                promised = int(line["header"]["revision"])
        await writing


async def test_one_watch_on_the_store_feeds_every_pod(stand: Stand) -> None:
    clients = [stand.client(token) for token in ("alice", "bob")]
    followers = [Follower(client, [PHASE]) for client in clients]
    for follower in followers:
        await follower.until(1)
    await stand.write(PHASE, b"x")
    for follower in followers:
        await follower.until(2)
        await follower.end()
    assert len(stand.store._waiting) == 1
    for client in clients:
        client.close()


async def test_watches_stay_open_while_the_store_is_away(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PROGRESS_S", 0.02)
    async with stand.watch({"key": b64(ORDER)}) as lines:
        await lines.next()
        stand.store.available = False
        assert set(await lines.next()) == {"header"}
        with stand.client("bob") as client:
            for call in (
                lambda: client.get(KEYS.order("shop", BOB.uid)),
                lambda: client.put(KEYS.report("shop", BOB.uid), a_report()),
                lambda: client.grant(30),
            ):
                with pytest.raises(Unavailable):
                    await in_thread(call)
        assert (await stand.post("/v3/watch", {"create_request": {"key": b64(ORDER)}}))[0] == 503
        stand.store.available = True
        await stand.write(ORDER, b"1")
        line = {}
        while "events" not in line:
            line = await lines.next()


async def test_a_store_that_began_anew_is_found_out(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebbtide.etcd.resume.RESTART_PROOF_S", 0.2)
    monkeypatch.setattr(module, "CATCH_UP_S", 0.05)
    await stand.write(ORDER, b"old")
    for _ in range(30):
        await stand.write(PHASE)
    with stand.client("alice") as client:
        follower = Follower(client, [ORDER])
        await follower.until(1)
        await stand.write(ORDER, b"newest")
        await follower.until(2)
        empty = MemoryStore()
        stand.relay._store = stand.state._store = empty
        stand.state.mirror.apply([Resync((), empty.revision, restarted=True)])
        changes = await follower.until(4)
        await follower.end()
    assert changes[2] == Resync((), empty.revision, restarted=True)
    assert changes[3] == Removed(ORDER, empty.revision)


async def test_a_store_that_was_replaced_and_counted_on_is_found_out(stand: Stand) -> None:
    stand.store.cluster = 7
    seen = await stand.write(ORDER, b"old")
    with stand.client("alice") as client:
        follower = Follower(client, [ORDER])
        await follower.until(1)
        other = MemoryStore()
        other.cluster = 8
        while other.revision < seen + 5:
            await other.transact([], [Put(PHASE, b"{}")])
        stand.relay._store = stand.state._store = other
        stand.state.mirror.apply([Resync((), other.revision, restarted=True)])
        changes = await follower.until(3)
        await follower.end()
    assert changes[1] == Resync((), other.revision, restarted=True)
    assert changes[2] == Removed(ORDER, other.revision)


async def test_a_watch_ends_after_a_while(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PROGRESS_S", 0.02)
    async with stand.watch({"key": b64(ORDER)}) as lines:
        await lines.next()
        stand.now += module.WATCH_S * 1.2 + 1
        while await lines.next() is not None:
            continue
    assert stand.open_watches() == 0


async def test_a_pod_that_went_away_leaves_nothing(stand: Stand) -> None:
    async with stand.watch({"key": b64(ORDER)}) as lines:
        await lines.next()
        assert stand.open_watches() == 1
    await until(lambda: not stand.open_watches())
    assert not stand.relay._watches
    assert not stand.relay._subscriptions
    assert not stand.state.mirror._subscriptions


async def test_a_pod_whose_workload_is_not_known_yet_reads_phases_of_its_namespace(stand: Stand) -> None:
    stand.workloads.clear()
    await stand.write(PHASE, b"phase")
    with stand.client("alice") as client:
        assert (await in_thread(client.get, PHASE)).value == b"phase"
        assert (await in_thread(client.get, KEYS.phase("shop", "deployment", "other"))) is None


async def test_a_token_is_reviewed_once_a_minute(stand: Stand) -> None:
    for _ in range(3):
        await stand.post("/v3/kv/range", {"key": b64(ORDER)})
    assert stand.reviews == ["alice"]
    stand.now += 61
    await stand.post("/v3/kv/range", {"key": b64(ORDER)})
    assert stand.reviews == ["alice", "alice"]


async def test_an_order_for_the_workloads_other_pod_is_not_told(stand: Stand) -> None:
    async with stand.watch({"key": b64(ORDER)}) as lines:
        await lines.next()
        await stand.write(KEYS.order("shop", BOB.uid), b"not yours")
        await stand.write(ORDER, b"yours")
        assert (await lines.next())["events"][0]["kv"]["value"] == b64("yours")


def test_the_workload_of_the_tests_is_the_one_of_the_phase() -> None:
    assert KEYS.phase(ORDERS.namespace, ORDERS.kind, ORDERS.name) == PHASE


async def test_changes_between_two_lines_are_told_as_one(stand: Stand) -> None:
    start = stand.state.mirror.revision + 1
    for number in range(5):
        await stand.write(ORDER, b"%d" % number)
    async with stand.watch({"key": b64(ORDER), "start_revision": str(start)}) as lines:
        await lines.next()
        line = await lines.next()
        assert [event["kv"]["value"] for event in line["events"]] == [b64("4")]
