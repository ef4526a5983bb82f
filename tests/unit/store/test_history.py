"""The history of drains: written once, bounded, and in one step with the end of its pod."""

from typing import Any

import pytest

from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.ports import Put
from ebbtide_operator.store import drain_state as module
from ebbtide_operator.store.drain_state import MirroredDrainState
from tests.unit.store.stand import KEYS, ORDERS, Clock, a_record, an_order, report, seen


async def test_history_is_bounded_by_workload(
    state: MirroredDrainState, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORDS_PER_WORKLOAD", 5)
    await state.lead("me")
    other = WorkloadKey("shop", "deployment", "other")
    await state.write_record(other, a_record("x", 1.0))
    for number in range(12):
        await state.write_record(ORDERS, a_record(f"u{number}", 100.0 + number))
    await seen(state, store)
    assert [record.uid for record in state.records(ORDERS)] == ["u11", "u10", "u9", "u8", "u7"]
    assert len((await store.range(KEYS.records))[0]) == 6
    assert len(state.records(other)) == 1


async def test_the_end_of_a_pod_is_one_write(state: MirroredDrainState, store: Any) -> None:
    await state.lead("me")
    await state.send_order("shop", "u1", an_order(state.epoch))
    await report(store, "u1")
    await state.post_request("shop", "u1", "replicaset-controller")
    before = store.revision
    await state.end(ORDERS, a_record("u1", 100.0))
    assert store.revision == before + 1
    left = [item.key for item in (await store.range(f"{KEYS.prefix}/"))[0]]
    assert left == [KEYS.leader, KEYS.record("shop", "deployment", "orders", 100.0, "u1")]
    assert state.order("shop", "u1") is None


async def test_history_is_bounded_by_age(state: MirroredDrainState, store: Any, clock: Clock) -> None:
    """Also what this version cannot read."""
    await state.lead("me")
    days = 86400.0
    for age in (31, 29, 0):
        await state.write_record(ORDERS, a_record(f"u{age}", clock.now - age * days))
    unreadable = KEYS.record("shop", "deployment", "other", clock.now - 40 * days, "u")
    await store.transact([], [Put(unreadable, b'{"v":2}')])
    await seen(state, store)
    assert await state.sweep(lambda *_: True, lambda _: True) == 2
    left = [item.key for item in (await store.range(KEYS.records))[0]]
    assert [key.rpartition("-")[2] for key in left] == ["u29", "u0"]
    assert await state.sweep(lambda *_: True, lambda _: True) == 0


async def test_history_is_bounded_in_all(
    state: MirroredDrainState, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORDS_IN_ALL", 4)
    await state.lead("me")
    for number in range(9):
        key = WorkloadKey("shop", "deployment", f"w{number}")
        await state.write_record(key, a_record("u", 100.0 + number))
    left = [item.key for item in (await store.range(KEYS.records))[0]]
    assert [key.split("/")[-2] for key in left] == ["w5", "w6", "w7", "w8"]


async def test_only_the_last_ten_ends_are_shown(state: Any) -> None:
    await state.lead("me")
    for number in range(13):
        await state.write_record(ORDERS, a_record(f"u{number}", 100.0 + number))
    assert [record.uid for record in state.records(ORDERS)] == [f"u{number}" for number in range(12, 2, -1)]


async def test_the_same_record_twice_is_one(state: Any) -> None:
    await state.lead("me")
    await state.write_record(ORDERS, a_record("u1", 100.0))
    await state.write_record(ORDERS, a_record("u1", 100.0))
    assert len(state.records(ORDERS)) == 1
