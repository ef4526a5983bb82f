"""Mirror, leadership and relay over real etcd."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from ebbtide.etcd import EtcdClient, LeaseNotFound, Resync
from ebbtide.protocol import Desired, DrainRecord, Order, Outcome, Phase, PodState, Report, RolloutPhase
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import Deposed, PodIdentity, StoreUnavailable
from ebbtide_operator.serve.relay import Relay
from ebbtide_operator.store import drain_state as module
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from tests.contract.faults import MIB, empty, fill
from tests.contract.member import Member
from tests.contract.proxy import Proxy
from tests.contract.watching import collect

pytestmark = pytest.mark.etcd

ORDERS = WorkloadKey("shop", "deployment", "orders")
POD = PodIdentity("shop", "orders-1", "uid-1")


def an_order(epoch: int, generation: int = 1) -> Order:
    return Order(desired=Desired.DRAIN, generation=generation, epoch=epoch)


@contextlib.asynccontextmanager
async def replica(etcd: Member | Proxy, prefix: str = "/ebbtide/v1", *, adapter: Any = Gateway) -> AsyncIterator[Any]:
    store = adapter([etcd.url], timeout_s=1.0, inactivity_s=3.0)
    state = MirroredDrainState(store, prefix=prefix)
    task = asyncio.create_task(state.run())
    await state.synced()
    try:
        yield state
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(40):
        while not condition():  # noqa: ASYNC110 (another process brings it about)
            await asyncio.sleep(0.01)


async def test_a_deposed_leader_is_refused_by_etcd(etcd: Member) -> None:
    async with replica(etcd) as old, replica(etcd) as new:
        first = await old.lead("old")
        await old.send_order("shop", "u1", an_order(first))
        second = await new.lead("new")
        assert second > first
        assert new.order("shop", "u1") == an_order(first)
        with pytest.raises(Deposed):
            await old.send_order("shop", "u1", an_order(first, generation=2))
        await new.send_order("shop", "u1", an_order(second, generation=2))
        await until(lambda: old.order("shop", "u1") == an_order(second, generation=2))
        with EtcdClient([etcd.url]) as client:
            key_value = client.get(new.keys.order("shop", "u1"))
        assert key_value is not None
        assert Order.decode(key_value.value).epoch == second


async def test_leadership_outlives_the_store(etcd: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebbtide_operator.store.leadership.RETRY_S", 0.1)
    monkeypatch.setattr(module, "PROBE_S", 0.1)
    epochs: list[int] = []
    async with replica(etcd) as state:
        holding = asyncio.create_task(state.hold_leadership("me", began=epochs.append))
        await until(lambda: state.epoch)
        await asyncio.to_thread(etcd.kill)
        await until(lambda: not state.healthy)
        assert state.unhealthy_since is not None
        with pytest.raises(StoreUnavailable):
            await state.forget("shop", "u1")
        await asyncio.to_thread(etcd.start)
        await until(lambda: state.healthy)
        # The lease lived on, or a new epoch began: either way it writes again.
        await until(lambda: state.epoch)
        await state.send_order("shop", "u1", an_order(state.epoch))
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await until(lambda: state.leader == "")


async def test_a_frozen_store_is_unhealthy_without_a_call_of_ours(
    etcd: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.1)
    async with replica(etcd) as state:
        etcd.freeze()
        await until(lambda: not state.healthy)
        etcd.thaw()
        await until(lambda: state.healthy)


@pytest.mark.timeout(120)
async def test_an_emptied_store_begins_anew(etcd: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebbtide.etcd.resume.RESTART_PROOF_S", 0.5)
    monkeypatch.setattr("ebbtide_operator.store.leadership.RETRY_S", 0.1)
    told: list[Any] = []
    epochs: list[int] = []
    async with replica(etcd) as state:
        state.mirror._listener = lambda *what: told.append(what)
        holding = asyncio.create_task(state.hold_leadership("me", began=epochs.append))
        await until(lambda: epochs)
        for number in range(20):
            await state.send_order("shop", f"u{number}", an_order(state.epoch))
        old = state.epoch
        await asyncio.to_thread(etcd.kill)
        etcd.wipe()
        told.clear()
        await asyncio.to_thread(etcd.start)
        await until(lambda: state.orders("shop") == {})
        assert ("shop", "u0", None) in told
        with pytest.raises(Deposed):
            await state.send_order("shop", "u1", an_order(old))
        await until(lambda: len(epochs) == 2)
        await state.send_order("shop", "u1", an_order(state.epoch))
        assert set(state.orders("shop")) == {"u1"}
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


@pytest.mark.timeout(120)
async def test_a_store_that_was_replaced_and_counted_on_begins_anew(
    etcd: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off while it was emptied, the operator finds revisions that go on where the old ones ended."""
    monkeypatch.setattr("ebbtide_operator.store.leadership.RETRY_S", 0.1)
    proxy = Proxy(etcd.port)
    epochs: list[int] = []
    try:
        async with replica(proxy) as state:
            holding = asyncio.create_task(state.hold_leadership("me", began=epochs.append))
            await until(lambda: epochs)
            await state.send_order("shop", "u0", an_order(state.epoch, generation=9))
            kept = state.keys.order("shop", "u0")
            proxy.refusing = True
            proxy.cut()
            await until(lambda: not state.healthy)
            seen, cluster = state.mirror.revision, state._store.cluster
            await asyncio.to_thread(etcd.kill)
            etcd.wipe(token="another")
            await asyncio.to_thread(etcd.start)
            with EtcdClient([etcd.url]) as client:
                # As the other replica does; then something else, until a revision says nothing any more.
                first = an_order(3)
                client.put(kept, first.encode())
                while client.put("/elsewhere", b"") <= seen + 10:
                    pass
            proxy.refusing = False
            # Written earlier in the count than what is known: nothing but the id says that it is newer.
            await until(lambda: state.order("shop", "u0") == first)
            assert state._store.cluster not in (0, cluster)
            await until(lambda: len(epochs) == 2 and state.epoch)
            await state.send_order("shop", "u0", an_order(state.epoch))
            assert state.order("shop", "u0") == an_order(state.epoch)
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
    finally:
        proxy.close()


async def test_history_is_bounded_in_etcd(etcd: Member) -> None:
    async with replica(etcd) as state:
        await state.lead("me")
        for number in range(60):
            record = DrainRecord(pod="p", uid=f"u{number}", outcome=Outcome.CLEAN, reason="r", ended_at=1000.0 + number)
            await state.write_record(ORDERS, record)
        with EtcdClient([etcd.url]) as client:
            names = [item.key for item in client.range(state.keys.records).key_values]
        assert len(names) == 50
        assert names[0].endswith("u10")
        assert [record.uid for record in state.records(ORDERS)] == [f"u{number}" for number in range(59, 49, -1)]


async def test_two_prefixes_do_not_see_each_other(etcd: Member) -> None:
    async with replica(etcd, "/one") as one, replica(etcd, "/one-more") as more:
        await one.lead("a")
        await more.lead("b")
        await more.send_order("shop", "u1", an_order(more.epoch))
        await one.send_order("shop", "u2", an_order(one.epoch))
        await until(lambda: one.order("shop", "u2") and more.order("shop", "u1"))
        assert set(one.orders("shop")) == {"u2"}
        assert one.epoch


@pytest.mark.parametrize("adapter", [Gateway, Etcd3])
async def test_a_full_etcd_is_lost_to_every_replica_until_there_is_room(
    adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.05)
    member = Member(f"--quota-backend-bytes={16 * MIB}")
    try:
        member.start()
        async with replica(member, adapter=adapter) as leader, replica(member, adapter=adapter) as follower:
            await leader.lead("me")
            await asyncio.to_thread(fill, member.url)
            await until(lambda: leader.unhealthy_since and follower.unhealthy_since)
            lost_since = leader.unhealthy_since, follower.unhealthy_since
            with pytest.raises(StoreUnavailable):
                await leader.send_order("shop", "u1", an_order(leader.epoch))
            # What it answers, to reads and to the leader's beats, is no sign that it takes orders.
            for _ in range(5):
                await leader.renew()
                await follower._store.range(follower.keys.leader)
                await asyncio.sleep(module.PROBE_S)
            assert (leader.unhealthy_since, follower.unhealthy_since) == lost_since
            await asyncio.to_thread(empty, member.url)
            await until(lambda: leader.healthy and follower.healthy)
            await leader.send_order("shop", "u1", an_order(leader.epoch))
            await until(lambda: follower.order("shop", "u1"))
    finally:
        member.close()


@contextlib.asynccontextmanager
async def served(state: Any) -> AsyncIterator[Any]:
    async def authenticate(token: str) -> Any:
        return POD if token == "secret" else None

    relay = Relay(state, state._store, authenticate, lambda namespace, uid: ORDERS, Metrics())
    app = web.Application()
    app.add_routes(relay.routes())
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        relay.close()
        await runner.cleanup()


@pytest.mark.timeout(120)
async def test_a_pod_drains_through_the_relay_over_an_outage(etcd: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, report, lease and phase, with etcd killed in between: what the pod holds open stays open."""
    monkeypatch.setattr(module, "PROBE_S", 0.1)
    async with replica(etcd) as state, replica(etcd) as second, served(state) as one, served(second) as two:
        await state.lead("me")
        with EtcdClient([one, two], token=lambda: "secret") as client:
            lease = await asyncio.to_thread(client.grant, 30)
            report = Report(state=PodState.SERVING, sequence=1, boot_id="b")
            key = state.keys.report(POD.namespace, POD.uid)
            await asyncio.to_thread(client.put, key, report.encode(), lease=lease)
            await until(lambda: state.report("shop", POD.uid))
            assert state.report("shop", POD.uid).live

            changes: list[Any] = []
            order_key, phase_key = state.keys.order("shop", POD.uid), state.keys.phase("shop", "deployment", "orders")
            stop = threading.Event()
            watch = client.watch([order_key, phase_key], stop=stop)
            thread = threading.Thread(target=collect, args=(watch, changes))
            thread.start()
            await until(lambda: watch.connected)
            await state.publish_phase(ORDERS, Phase(phase=RolloutPhase.ROLLING_OUT))
            await until(lambda: len(changes) == 2)

            await asyncio.to_thread(etcd.kill)
            await until(lambda: not state.healthy and not second.healthy)
            assert watch.connected
            await asyncio.to_thread(etcd.start)
            await until(lambda: state.healthy and second.healthy)

            await until(lambda: state.epoch)
            await state.send_order("shop", POD.uid, an_order(state.epoch))
            await until(lambda: len(changes) == 3)
            assert Order.decode(changes[2].key_value.value) == an_order(state.epoch)
            assert isinstance(changes[0], Resync)
            assert watch.last_error is None

            final = Report(state=PodState.DRAINED, sequence=2, boot_id="b", generation=1)
            try:
                await asyncio.to_thread(client.put, key, final.encode())
            except LeaseNotFound:
                pytest.fail("a final report has no lease")
            await until(lambda: (view := second.report("shop", POD.uid)) and not view.live)
            record = DrainRecord(pod=POD.name, uid=POD.uid, outcome=Outcome.CLEAN, reason="r", ended_at=1000.0)
            await state.end(ORDERS, record)
            await until(lambda: second.report("shop", POD.uid) is None)
            assert second.order("shop", POD.uid) is None
            assert second.records(ORDERS) == (record,)
            stop.set()
            await asyncio.to_thread(thread.join, 10)
