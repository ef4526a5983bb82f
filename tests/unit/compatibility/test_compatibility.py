"""Pods and operators of different versions understand each other, as long as both speak version 1 of the protocol.

The older side is `first_protocol.py`, the module as it was first, and `v1.json`, records as that version wrote them,
with fields left out and added. A built distribution of that time would need the history of the repository, which a
shallow clone does not have.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from ebbtide import protocol
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.ports import Put
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.memory import MemoryStore
from tests.unit.compatibility import first_protocol as first
from tests.unit.etcd.relay_stand import ALICE, KEYS, Stand, b64
from tests.unit.test_protocol import every

WRITTEN = json.loads(Path(__file__).with_name("v1.json").read_text())
KINDS = ("Order", "Report", "Phase", "Request", "Leader", "DrainRecord")
ENUMS = ("Desired", "PodState", "RolloutPhase", "Outcome")


def known(record: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """Give the fields that both versions have."""
    for spec in dataclasses.fields(getattr(first, kind)):
        if spec.name != "extra":
            yield spec.name, getattr(record, spec.name)


@given(every)
def test_an_older_side_reads_what_is_written_today(record: Any) -> None:
    kind = type(record).__name__
    older = getattr(first, kind).decode(record.encode())
    assert dict(known(older, kind)) == dict(known(record, kind))


@given(every)
def test_an_older_side_that_writes_it_back_loses_nothing(record: Any) -> None:
    again = getattr(first, type(record).__name__).decode(record.encode()).encode()
    assert type(record).decode(again) == record


@pytest.mark.parametrize("item", WRITTEN, ids=lambda item: item["key"].rpartition("/")[2])
def test_today_what_an_older_side_wrote_is_read(item: dict[str, str]) -> None:
    kind, value = item["kind"], item["value"].encode()
    older, newer = getattr(first, kind).decode(value), getattr(protocol, kind).decode(value)
    assert dict(known(newer, kind)) == dict(known(older, kind))


def test_an_order_without_the_later_fields_means_what_it_meant() -> None:
    order = protocol.Order.decode(WRITTEN[0]["value"].encode())
    assert (order.leave, order.issued_at, order.workload) == (False, 0.0, "")


async def test_todays_operator_takes_in_a_store_that_an_older_one_filled() -> None:
    store = MemoryStore()
    for item in WRITTEN:
        await store.transact([], [Put(item["key"], item["value"].encode())])
    state = MirroredDrainState(store)
    key_values, revision = await store.range("/ebbtide/v1/")
    state.mirror.replace(key_values, revision)
    assert state.quarantined == {}
    assert state.leader == "ebbtide-0"
    assert set(state.orders("shop")) == {"uid-1", "uid-2"}
    view = state.report("shop", "uid-1")
    assert view is not None
    assert (view.report.active, view.report.tally) == (2, {"failed": 1, "finished": 204})
    assert state.requested("shop") == {"uid-1"}
    orders = WorkloadKey("shop", "deployment", "orders")
    assert state.phase(orders) is not None
    assert [record.outcome for record in state.records(orders)] == [protocol.Outcome.CLEAN]


async def test_an_older_library_drains_through_todays_relay() -> None:
    async with Stand() as stand:
        epoch = await stand.state.lead("operator")
        order = protocol.Order(desired=protocol.Desired.DRAIN, generation=1, epoch=epoch, leave=True, pod="orders-1")
        await stand.state.send_order(ALICE.namespace, ALICE.uid, order)
        keys = first.Keys()
        _, answer = await stand.post("/v3/kv/range", {"key": b64(keys.order(ALICE.namespace, ALICE.uid))})
        (found,) = answer["kvs"]
        assert found["value"] == b64(order.encode())
        obeyed = first.Order.decode(order.encode())
        assert (obeyed.desired, obeyed.generation, obeyed.epoch) == (first.Desired.DRAIN, 1, epoch)
        report = first.Report(state=first.PodState.DRAINED, sequence=2, boot_id="b", generation=obeyed.generation)
        body = {"key": b64(keys.report(ALICE.namespace, ALICE.uid)), "value": b64(report.encode())}
        status, _ = await stand.post("/v3/kv/put", body)
        assert status == 200
        await stand.state.mirror.reached(stand.store.revision)
        view = stand.state.report(ALICE.namespace, ALICE.uid)
        assert view is not None
        assert (view.report.state, view.report.generation) == (protocol.PodState.DRAINED, 1)


@pytest.mark.parametrize("name", ENUMS)
def test_no_value_is_added_that_an_older_side_cannot_read(name: str) -> None:
    """A record with a value that is not known is unreadable as a whole: that takes another version of the protocol."""
    assert [str(one) for one in getattr(protocol, name)] == [str(one) for one in getattr(first, name)]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_added_with_defaults_and_never_taken_away(kind: str) -> None:
    before = {spec.name: str(spec.type) for spec in dataclasses.fields(getattr(first, kind))}
    now = {spec.name: spec for spec in dataclasses.fields(getattr(protocol, kind))}
    assert {name: str(now[name].type) for name in before} == before
    for name in now.keys() - before.keys():
        assert now[name].default is not dataclasses.MISSING, name


def test_keys_are_spelled_as_ever() -> None:
    before = first.Keys()
    assert (before.leader, before.order("n", "u"), before.report("n", "u"), before.request("n", "u")) == (
        KEYS.leader,
        KEYS.order("n", "u"),
        KEYS.report("n", "u"),
        KEYS.request("n", "u"),
    )
    assert before.phase("n", "k", "w") == KEYS.phase("n", "k", "w")
    assert before.record("n", "k", "w", 1.5, "u") == KEYS.record("n", "k", "w", 1.5, "u")
