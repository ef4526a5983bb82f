import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.protocol import Desired, Keys, Order
from ebbtide_operator.ports import Changed, KeyValue, Removed, Resync
from ebbtide_operator.store import mirror as module
from ebbtide_operator.store.mirror import Mirror

KEYS = Keys()
UIDS = ["a", "b", "c"]


def quiet(namespace: str, uid: str | None, workload: str | None) -> None:
    """Listen to nothing."""


def a_mirror(key_values: Any = (), revision: Any = 1) -> Mirror:
    mirror = Mirror(KEYS, lambda: 0.0, quiet)
    mirror.replace(key_values, revision)
    return mirror


def a_value(uid: str, revision: int, generation: int = 1, created: int | None = None) -> KeyValue:
    order = Order(desired=Desired.DRAIN, generation=generation, epoch=1)
    return KeyValue(KEYS.order("ns", uid), order.encode(), created or revision, revision)


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete"]),
        st.sampled_from(UIDS),
        st.booleans(),  # written by ourselves, so known before the watch tells it
        st.booleans(),  # the watch is told right away
        st.sampled_from(["event", "resync"]),
    ),
    max_size=25,
)


@given(steps)
def test_ends_equal_to_the_store_however_late_the_watch_is(history: Any) -> None:
    mirror = a_mirror()
    store: dict[str, KeyValue] = {}
    backlog: list[Any] = []
    revision = 1
    for action, uid, own, flush, how in history:
        key = KEYS.order("ns", uid)
        if action == "put":
            revision += 1
            value = a_value(uid, revision, revision, store[key].create_revision if key in store else revision)
            store[key] = value
            backlog.append(Changed(value, revision))
            if own:
                mirror.learn(value)
        elif key in store:
            revision += 1
            del store[key]
            backlog.append(Removed(key, revision))
            if own:
                mirror.unlearn(key, revision)
        elif own:  # deleting nothing succeeds too, at the revision of the moment
            mirror.unlearn(key, revision)
        if own:  # whatever the watch has not told yet, our own write shows
            assert (key in mirror.values) == (key in store)
        if flush:
            mirror.apply([Resync(tuple(store.values()), revision)] if how == "resync" else backlog)
            backlog.clear()
            assert mirror.values == store
    mirror.apply(backlog)
    assert mirror.values == store
    assert mirror.revision == revision
    assert {uid: order.generation for uid, order in mirror.orders.get("ns", {}).items()} == {
        key.rsplit("/", 1)[1]: value.mod_revision for key, value in store.items()
    }


@given(steps, st.integers(1, 30))
def test_a_watch_of_one_key_ends_with_its_present_state(history: Any, start: Any) -> None:
    """Whoever knows a key as of `start - 1` and applies `since` knows it as of now."""
    mirror = a_mirror()
    at: list[dict[str, KeyValue]] = [{}, {}]
    for action, uid, *_ in history:
        key, before = KEYS.order("ns", uid), at[-1]
        if action == "put":
            value = a_value(uid, len(at), len(at))
            mirror.apply([Changed(value, len(at))])
            at.append({**before, key: value})
        elif key in before:
            mirror.apply([Removed(key, len(at))])
            at.append({name: value for name, value in before.items() if name != key})
    known = at[min(start, len(at)) - 1]
    for uid in UIDS:
        key = KEYS.order("ns", uid)
        event = mirror.since(key, start)
        if event is None:
            assert known.get(key) == at[-1].get(key)
        else:
            assert event.revision >= start
            assert (event.key_value if isinstance(event, Changed) else None) == at[-1].get(key)


def test_a_late_event_does_not_undo_what_we_wrote_since() -> None:
    mirror = a_mirror()
    key = KEYS.order("ns", "a")
    mirror.learn(a_value("a", 9, 9))
    for late in (Changed(a_value("a", 7, 7), 7), Removed(key, 8), Changed(a_value("a", 9, 9), 9)):
        mirror.apply([late])
        assert mirror.orders["ns"]["a"].generation == 9
    mirror.unlearn(key, 12)
    for late in (Changed(a_value("a", 10, 10), 10), Removed(key, 11)):
        mirror.apply([late])
        assert key not in mirror.values
    mirror.apply([Changed(a_value("a", 13, 13), 13)])
    assert mirror.orders["ns"]["a"].generation == 13


def test_a_forgotten_deletion_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TOMBSTONES", 1)
    mirror = a_mirror([a_value("a", 1), a_value("b", 2)], 2)
    mirror.apply([Removed(KEYS.order("ns", "a"), 3), Removed(KEYS.order("ns", "b"), 4)])
    assert mirror.since(KEYS.order("ns", "b"), 5) is None
    assert mirror.since(KEYS.order("ns", "a"), 3) == Removed(KEYS.order("ns", "a"), 3)
    assert mirror.since(KEYS.order("ns", "a"), 4) is None


async def test_several_changes_between_two_looks_are_one() -> None:
    mirror = a_mirror()
    key = KEYS.order("ns", "a")
    subscription = mirror.subscribe([key])
    mirror.apply([Changed(a_value("a", 2), 2), Changed(a_value("b", 3), 3), Changed(a_value("a", 4), 4)])
    await subscription.wait()
    assert subscription.take() == [key]
    assert subscription.take() == []
    subscription.close()
    mirror.apply([Changed(a_value("a", 5), 5)])
    assert subscription.take() == []


async def test_a_subscription_waits_for_news_only() -> None:
    mirror = a_mirror()
    subscription = mirror.subscribe([KEYS.order("ns", "a")])
    waiting = asyncio.create_task(subscription.wait())
    mirror.apply([Changed(a_value("b", 2), 2)])
    await asyncio.sleep(0)
    assert not waiting.done()
    mirror.apply([Changed(a_value("a", 3), 3)])
    await waiting
    await subscription.wait()  # what was not taken is still there
    assert subscription.take() == [KEYS.order("ns", "a")]


async def test_a_store_that_began_anew_replaces_everything() -> None:
    mirror = a_mirror([a_value("a", 400), a_value("b", 500)], 900)
    subscription = mirror.subscribe([KEYS.order("ns", "a")])
    waiting = asyncio.create_task(mirror.reached(1000))
    await asyncio.sleep(0)
    mirror.apply([Resync((a_value("b", 2, 7),), 3, restarted=True)])
    assert mirror.revision == 3
    assert subscription.ended
    assert set(mirror.orders["ns"]) == {"b"}
    assert mirror.orders["ns"]["b"].generation == 7
    mirror.apply([Changed(a_value("a", 4), 4)])
    assert "a" in mirror.orders["ns"]
    async with asyncio.timeout(5):
        await waiting  # its revision will not come: look again


async def test_waits_for_a_revision() -> None:
    mirror = a_mirror()
    await mirror.reached(1)
    waiting = asyncio.create_task(mirror.reached(5))
    mirror.apply([Changed(a_value("a", 4), 4)])
    await asyncio.sleep(0)
    assert not waiting.done()
    mirror.apply([Changed(a_value("a", 5), 5)])
    await waiting


async def test_an_abandoned_wait_leaves_nothing() -> None:
    mirror = a_mirror()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await mirror.reached(9)
    assert mirror._waiting == []


def test_what_replaced_a_record_that_cannot_be_read_is_not_known_before_it_was_told() -> None:
    mirror = a_mirror([KeyValue(KEYS.order("ns", "a"), b"?", 2, 2)], 2)
    foreign = KeyValue(f"{KEYS.prefix}/what/is/this", b"", 3, 3)
    mirror.apply([Changed(foreign, 3)])
    assert len(mirror.quarantined) == 2
    unreadable = mirror.values[KEYS.order("ns", "a")]
    assert not mirror.lacks([unreadable, foreign], 3)
    assert mirror.lacks([a_value("a", 4), foreign], 5)
