import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from ebbtide.protocol import (
    Phase,
    PodState,
    Request,
    RolloutPhase,
)
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.ports import Delete, Deposed, Put, StoreUnavailable
from ebbtide_operator.store import drain_state as module
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.memory import MemoryStore
from tests.unit.store.stand import KEYS, ORDERS, Clock, Told, a_report, an_order, report, running, seen

# --- reads


async def test_a_report_is_live_while_its_lease_is(state: Any, store: Any, clock: Clock) -> None:
    lease = await store.grant(60)
    await report(store, "u1", lease=lease)
    await seen(state, store)
    view = state.report("shop", "u1")
    assert (view.report, view.live, view.received_at) == (a_report(), True, clock.now)
    await store.revoke(lease)
    await seen(state, store)
    assert state.report("shop", "u1") is None


async def test_a_final_report_outlives_the_lease_and_is_not_live(state: Any, store: Any) -> None:
    lease = await store.grant(60)
    await report(store, "u1", lease=lease)
    await report(store, "u1", a_report(state=PodState.DRAINED).encode())
    await store.revoke(lease)
    await seen(state, store)
    view = state.report("shop", "u1")
    assert view.report.state is PodState.DRAINED
    assert not view.live


async def test_reads_are_by_namespace(state: Any, store: Any) -> None:
    await state.lead("me")
    await state.send_order("shop", "u1", an_order(state.epoch))
    assert set(state.orders("shop")) == {"u1"}
    assert state.orders("bank") == {}
    assert state.order("bank", "u1") is None
    assert state.requested("bank") == frozenset()


async def test_a_phase_comes_with_its_revision_and_when_it_was_seen(
    state: MirroredDrainState, store: Any, clock: Clock
) -> None:
    await state.lead("me")
    phase = Phase(phase=RolloutPhase.ROLLING_OUT, revision="4")
    await state.publish_phase(ORDERS, phase)
    clock.now += 5
    await seen(state, store)
    key_value = await store.get(KEYS.phase("shop", "deployment", "orders"))
    assert state.phase(ORDERS) == (phase, key_value.mod_revision, clock.now - 5)
    await state.remove_phase(ORDERS)
    assert state.phase(ORDERS) is None


async def test_what_was_there_before_is_read_at_the_start(store: Any, clock: Clock) -> None:
    await report(store, "u1")
    told = Told()
    async with running(store, clock, told) as state:
        view = state.report("shop", "u1")
        assert view is not None
        assert view.report == a_report()
        assert told.calls == [("shop", "u1", None)]


async def test_a_write_is_read_back_at_once(state: Any, store: Any) -> None:
    await state.lead("me")
    order = an_order(state.epoch)
    await state.send_order("shop", "u1", order)
    assert state.order("shop", "u1") == order
    await state.forget("shop", "u1")
    assert state.order("shop", "u1") is None


# --- who is told


async def test_each_change_is_told_with_its_pod_or_workload(store: Any, clock: Clock) -> None:
    told = Told()
    async with running(store, clock, told) as state:
        await state.lead("me")
        await report(store, "u1")
        await seen(state, store)
        await state.publish_phase(ORDERS, Phase(phase=RolloutPhase.STABLE))
        await seen(state, store)
        await state.forget("shop", "u1")
        await seen(state, store)
    assert told.calls == [("shop", "u1", None), ("shop", None, "deployment/orders"), ("shop", "u1", None)]


async def test_a_listener_that_fails_does_not_end_the_mirror(
    store: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(namespace: str, uid: str, workload: Any) -> None:
        raise RuntimeError("no")

    async with running(store, clock, fails) as state:
        await report(store, "u1")
        await report(store, "u2")
        await seen(state, store)
        assert state.report("shop", "u2") is not None
    assert "store.listener.failed" in caplog.text


async def test_a_compaction_tells_only_what_differs(store: Any, clock: Clock) -> None:
    told = Told()
    await report(store, "gone")
    await report(store, "same")
    async with running(store, clock, told) as state:
        told.calls.clear()
        received_at = state.report("shop", "same").received_at
        clock.now += 60
        # Nothing here gives way to the watch before the history is gone.
        await store.transact([], [Put(KEYS.report("shop", "new"), a_report().encode())])
        await store.transact([], [Delete(KEYS.report("shop", "gone"))])
        store.compact()
        await seen(state, store)
        assert sorted(told.calls) == [("shop", "gone", None), ("shop", "new", None)]
        assert state.report("shop", "gone") is None
        assert state.report("shop", "same").received_at == received_at


# --- records that cannot be read


@pytest.mark.parametrize(
    "value", [b"", b"\xff\x00", b"[]", b'{"v":2}', b'{"state":"Flying","sequence":1,"boot_id":"b"}', b'{"sequence":1}']
)
async def test_a_bad_report_is_as_good_as_none(
    state: MirroredDrainState, store: Any, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await report(store, "u1")
    await report(store, "u2")
    await report(store, "u1", value)
    await report(store, "u1", value + b" ")
    await seen(state, store)
    assert state.report("shop", "u1") is None
    assert state.report("shop", "u2") is not None
    assert set(state.quarantined) == {KEYS.report("shop", "u1")}
    assert caplog.text.count("store.record.unreadable") == 1
    await report(store, "u1")
    await seen(state, store)
    view = state.report("shop", "u1")
    assert view is not None
    assert view.report == a_report()
    assert state.quarantined == {}


@pytest.mark.parametrize("key", ["orders/shop", "orders/shop/u/1", "orders//u", "phases/shop/orders", "nonsense"])
async def test_a_key_of_no_kind_is_set_aside(state: Any, store: Any, key: str) -> None:
    name = f"{KEYS.prefix}/{key}"
    await store.transact([], [Put(name, b"{}")])
    await seen(state, store)
    assert set(state.quarantined) == {name}
    await store.transact([], [Delete(name)])
    await report(store, "u1")
    await seen(state, store)
    assert state.quarantined == {}


# --- leadership


async def test_who_does_not_lead_cannot_write(state: Any) -> None:
    with pytest.raises(Deposed):
        await state.send_order("shop", "u1", an_order(0))
    with pytest.raises(Deposed):
        await state.forget("shop", "u1")


async def test_a_deposed_leader_is_refused_by_the_store(store: Any, clock: Clock) -> None:
    async with running(store, clock) as old, running(store, clock) as new:
        first = await old.lead("old")
        await old.send_order("shop", "u1", an_order(first))
        second = await new.lead("new")
        assert second > first
        assert old.epoch == first  # it does not know yet
        with pytest.raises(Deposed):
            await old.send_order("shop", "u2", an_order(first))
        assert old.epoch == 0
        assert await store.get(KEYS.order("shop", "u2")) is None
        await new.send_order("shop", "u2", an_order(second))
        assert new.leader == "new"


async def test_an_epoch_that_comes_again_after_a_loss_of_data_does_not_help_the_old_leader(clock: Clock) -> None:
    store = MemoryStore()
    async with running(store, clock) as old:
        epoch = await old.lead("old")
        emptied = MemoryStore()
        await emptied.grant(60)  # leases are random numbers in etcd
        async with running(emptied, clock) as new:
            assert await new.lead("new") == epoch
            old._store = old._leadership._store = emptied
            with pytest.raises(Deposed):
                await old.send_order("shop", "u1", an_order(epoch))


async def test_an_order_of_an_earlier_epoch_is_refused_even_by_the_same_leader(state: Any) -> None:
    first = await state.lead("me")
    second = await state.lead("me")
    with pytest.raises(Deposed):
        await state.send_order("shop", "u1", an_order(first))
    await state.send_order("shop", "u1", an_order(second))


async def test_a_new_leader_has_read_what_earlier_ones_wrote(store: Any, clock: Clock) -> None:
    async with running(store, clock) as old, running(store, clock) as new:
        await old.lead("old")
        for number in range(200):
            await old.send_order("shop", f"u{number}", an_order(old.epoch))
        await new.lead("new")
        assert len(new.orders("shop")) == 200


async def test_a_leader_does_not_decide_before_it_has_read_everything(state: Any) -> None:
    await state._leadership.take("me")
    assert state.epoch == 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            await state.mirror.reached(state._leadership.epoch)
    assert state.epoch == state._leadership.epoch > 0


async def test_a_leader_that_resigned_leaves_no_key(state: Any, store: Any) -> None:
    await state.lead("me")
    await state.resign()
    assert state.epoch == 0
    assert await store.get(KEYS.leader) is None
    await state.resign()


async def test_a_leader_whose_lease_ended_is_deposed(state: Any, store: Any) -> None:
    await state.lead("me")
    await store.revoke((await store.get(KEYS.leader)).lease)
    with pytest.raises(Deposed):
        await state.renew()
    assert state.epoch == 0


async def test_leadership_is_held_through_a_lost_lease_and_given_back(
    state: MirroredDrainState, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ebbtide_operator.store.leadership.RETRY_S", 0.01)
    epochs: asyncio.Queue[int] = asyncio.Queue()
    task = asyncio.create_task(state.hold_leadership("me", began=epochs.put_nowait))
    async with asyncio.timeout(10):
        first = await epochs.get()
        await store.revoke((await store.get(KEYS.leader)).lease)
        with pytest.raises(Deposed):
            await state.forget("shop", "u1")
        second = await epochs.get()
    assert second > first
    assert state.epoch == second
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await store.get(KEYS.leader) is None


async def test_who_is_not_elected_any_more_does_not_take_it_back(
    state: MirroredDrainState, store: Any, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr("ebbtide_operator.store.leadership.RETRY_S", 0.01)
    asked = asyncio.Event()
    elected = True

    def may_lead() -> bool:
        asked.set()
        return elected

    began = asyncio.Event()
    task = asyncio.create_task(state.hold_leadership("me", may_lead=may_lead, began=lambda epoch: began.set()))
    async with asyncio.timeout(10):
        await began.wait()
        elected = False
        asked.clear()
        await store.revoke((await store.get(KEYS.leader)).lease)
        with pytest.raises(Deposed):
            await state.forget("shop", "u1")
        await asked.wait()
    assert await store.get(KEYS.leader) is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- writes


async def test_a_pod_is_forgotten_in_one_step(state: Any, store: Any) -> None:
    await state.lead("me")
    await state.send_order("shop", "u1", an_order(state.epoch))
    await report(store, "u1")
    await state.post_request("shop", "u1", "replicaset-controller")
    await report(store, "u2")
    before = store.revision
    await state.forget("shop", "u1")
    assert store.revision == before + 1
    assert [item.key for item in (await store.range(f"{KEYS.prefix}/"))[0]] == [KEYS.leader, KEYS.report("shop", "u2")]


# --- requests


async def test_a_request_is_posted_once_in_a_while(state: Any, store: Any, clock: Clock) -> None:
    await asyncio.gather(*(state.post_request("shop", "u1", "replicaset-controller") for _ in range(45)))
    assert store.writes == 1
    await seen(state, store)
    assert state.requested("shop") == {"u1"}
    key_value = await store.get(KEYS.request("shop", "u1"))
    assert Request.decode(key_value.value) == Request(by="replicaset-controller", at=clock.now)
    assert key_value.lease
    clock.now += 21
    await state.post_request("shop", "u1", "replicaset-controller")
    assert store.writes == 2


async def test_a_request_that_another_replica_posted_is_not_posted_again(store: Any, clock: Clock) -> None:
    async with running(store, clock) as one, running(store, clock) as two:
        await one.post_request("shop", "u1", "x")
        await seen(two, store)
        await two.post_request("shop", "u1", "x")
    assert store.writes == 1


async def test_requests_share_a_lease_for_a_while(state: Any, store: Any, clock: Clock) -> None:
    await state.post_request("shop", "u1", "x")
    await state.post_request("shop", "u2", "x")
    clock.now += 21
    await state.post_request("shop", "u3", "x")
    leases = [(await store.get(KEYS.request("shop", uid))).lease for uid in ("u1", "u2", "u3")]
    assert leases[0] == leases[1] != leases[2]


async def test_a_request_outlives_the_end_of_the_shared_lease(state: Any, store: Any) -> None:
    await state.post_request("shop", "u1", "x")
    await store.revoke((await store.get(KEYS.request("shop", "u1"))).lease)
    await state.post_request("shop", "u2", "x")
    assert await store.get(KEYS.request("shop", "u2")) is not None


async def test_a_request_that_failed_is_posted_the_next_time(state: Any, store: Any) -> None:
    store.available = False
    with pytest.raises(StoreUnavailable):
        await state.post_request("shop", "u1", "x")
    store.available = True
    await state.post_request("shop", "u1", "x")
    assert await store.get(KEYS.request("shop", "u1")) is not None


# --- sweeping


async def test_sweeps_only_what_nobody_else_will(state: Any, store: Any, clock: Clock) -> None:
    await state.lead("me")
    lease = await store.grant(60)
    await report(store, "live", lease=lease)
    for uid in ("exists", "ordered", "gone"):
        await report(store, uid)
    await state.send_order("shop", "ordered", an_order(state.epoch))
    gone = WorkloadKey("shop", "deployment", "gone")
    for key in (ORDERS, gone):
        await state.publish_phase(key, Phase(phase=RolloutPhase.STABLE))
    await seen(state, store)

    async def sweep() -> Any:
        return await state.sweep(lambda namespace, uid: uid == "exists", lambda key: key == ORDERS)

    assert await sweep() == 0
    clock.now += 601
    await report(store, "late")
    await seen(state, store)
    assert await sweep() == 2
    assert set(state.mirror.reports["shop"]) == {"live", "exists", "ordered", "late"}
    assert state.phase(gone) is None
    assert state.phase(ORDERS) is not None


# --- health


async def test_says_since_when_the_store_is_away(
    state: MirroredDrainState, store: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.healthy
    assert state.unhealthy_since is None
    store.available = False
    clock.now += 30
    assert not state.healthy
    assert state.unhealthy_since == clock.now - 30
    store.available = True
    assert state.healthy


async def test_a_full_store_is_as_good_as_away(store: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.001)
    async with running(store, clock) as state:
        epoch = await state.lead("me")
        store.full = True
        async with asyncio.timeout(10):
            while state.healthy:  # noqa: ASYNC110 (a probe finds out)
                await asyncio.sleep(0.001)
        full_at = clock.now
        clock.now += 30
        await store.range("/")
        with pytest.raises(StoreUnavailable):
            await state.send_order("shop", "u1", an_order(epoch))
        assert state.unhealthy_since == full_at
        store.full = False
        async with asyncio.timeout(10):
            while not state.healthy:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert state.unhealthy_since is None


async def test_is_not_healthy_before_the_first_list(store: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.01)
    store.available = False
    state = MirroredDrainState(store, clock=clock)
    task = asyncio.create_task(state.run())
    started = clock.now
    clock.now += 3
    await asyncio.sleep(0)
    assert not state.healthy
    assert state.unhealthy_since == started
    store.available = True
    await state.synced()
    assert state.healthy
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class DeadWatch(MemoryStore):
    """A watch whose connection is dead and says nothing, not even that."""

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Any, None]:
        await asyncio.Event().wait()
        yield ()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.005)
    monkeypatch.setattr(module, "BEHIND_S", 0.01)


async def test_a_dead_watch_does_not_keep_the_mirror_behind(
    clock: Clock, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    store = DeadWatch()
    await report(store, "gone")
    async with running(store, clock) as state:
        await report(store, "u1")
        await store.transact([], [Delete(KEYS.report("shop", "gone"))])
        await seen(state, store)
        assert state.report("shop", "u1") is not None
        assert state.report("shop", "gone") is None
    assert "store.watch.stale" in caplog.text


async def test_what_others_keep_in_the_store_is_not_taken_for_a_dead_watch(
    clock: Clock, impatient: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOREIGN_S", 0.0)
    store = DeadWatch()
    async with running(store, clock) as state:
        await store.transact([], [Put("/somebody/else", b"")])
        await seen(state, store)
        assert state.mirror.values == {}
    assert "store.watch.stale" not in caplog.text
