"""Beats up a watch: what keeps a lease, what does not, and who falls back on requests of their own."""

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web

from ebbtide.agent import KEEP_ALIVE_S, LEASE_S
from ebbtide.etcd import Heartbeat, stream, wire
from ebbtide.etcd.watch import INACTIVITY_S
from ebbtide_operator.serve import pulse, relay
from tests.unit.etcd.relay_stand import ALICE, BOB, KEYS, Follower, Stand, b64, until
from tests.unit.etcd.test_relay import in_thread

pytestmark = pytest.mark.both_loops

ORDER = KEYS.order(ALICE.namespace, ALICE.uid)
PERIOD_S = 0.05


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "ANSWER_S", 0.0)


class Counted(Heartbeat):
    """Count the answers."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        super().__init__(period_s, on_ended=self._end)
        self.answers: list[bool] = []
        self.ended = 0

    def _end(self) -> None:
        self.ended += 1

    def answered(self, lease: int, *, alive: bool) -> None:
        super().answered(lease, alive=alive)
        self.answers.append(alive)


class Beating:
    """A pod's own client that beats up its watch."""

    def __init__(self, stand: Stand, period_s: float = PERIOD_S, **arguments: Any) -> None:
        self.heartbeat = Counted(period_s)
        self._arguments = arguments
        self.client = stand.client("alice")

    async def __aenter__(self) -> Any:
        self.lease = await in_thread(self.client.grant, 30)
        self.heartbeat.hold(self.lease)
        self.follower = Follower(self.client, [ORDER], self.heartbeat, **self._arguments)
        await until(lambda: self.follower.watch.connected)
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.follower.end()
        self.client.close()


async def test_beats_renew_a_lease_over_the_watch_alone() -> None:
    async with Stand() as stand, Beating(stand) as pod:
        before = stand.store._leases[pod.lease].expires_at
        requests = stand.relay._requests._buckets[ALICE.uid]
        asked_at = requests.at
        await until(lambda: pod.heartbeat.answers.count(True) >= 5)
        assert stand.store._leases[pod.lease].expires_at > before
        assert pod.heartbeat.request_at > time.monotonic()
        assert stand.open_watches() == 1
        assert requests.at >= asked_at
        change = await stand.write(ORDER, b"1")
        changes = await pod.follower.until(2)
        assert changes[1].revision == change, "answers are no news, and lose none"


async def test_an_ended_lease_is_told() -> None:
    async with Stand() as stand, Beating(stand) as pod:
        await until(lambda: pod.heartbeat.answers)
        await stand.store.revoke(pod.lease)
        await until(lambda: pod.heartbeat.ended)
        assert (pod.heartbeat.lease, pod.heartbeat.ended) == (0, 1)
        assert pod.heartbeat.request_at == float("inf")
        again = await in_thread(pod.client.grant, 30)
        pod.heartbeat.hold(again)
        pod.heartbeat.answers.clear()
        await until(lambda: True in pod.heartbeat.answers)
        assert pod.follower.watch.connected


async def test_a_store_that_is_away_answers_no_beat_and_the_watch_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEATEN_PROGRESS_S", 600.0)
    async with Stand() as stand, Beating(stand) as pod:
        await until(lambda: pod.heartbeat.answers)
        stand.store.available = False
        await until(lambda: pod.heartbeat.request_at < time.monotonic())
        assert pod.heartbeat.lease == pod.lease
        assert pod.follower.watch.connected
        stand.store.available = True
        await until(lambda: pod.heartbeat.request_at > time.monotonic())
        assert pod.heartbeat.ended == 0


async def test_each_beat_of_an_older_library_has_one_answer_and_a_pod_that_beats_needs_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pulse, "PROGRESS_S", 0.01)
    monkeypatch.setattr(pulse, "ANSWER_S", 600.0)
    async with Stand() as stand:
        _, granted = await stand.post("/v3/lease/grant", {"TTL": "30"})
        async with stand.beating({"key": b64(ORDER)}) as up:
            await up.until(b'"created":true}}\n')
            for _ in range(3):
                up.send(json.dumps({"ID": granted["ID"]}).encode() + b"\n")
                told = await up.until(b"}}\n")
                assert f'"ID":"{granted["ID"]}","TTL":'.encode() in told
            monkeypatch.setattr(pulse, "BEATEN_PROGRESS_S", 0.01)
            assert b'"ID"' not in await up.until(b"}}\n"), "who does not beat is told that it is heard"


async def test_who_asks_for_few_answers_gets_none_soon_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "ANSWER_S", 600.0)
    async with Stand() as stand, stand.beating({"key": b64(ORDER)}, heartbeat=wire.SPARING) as up:
        await up.until(b'"created":true}}\n')
        first, second = [int((await stand.post("/v3/lease/grant", {"TTL": "30"}))[1]["ID"]) for _ in range(2)]

        async def answer(lease: int) -> Any:
            up.send(b'{"ID":"%d"}\n' % lease)
            return await up.until(b"}\n")

        assert b'"ID":"%d","TTL":' % first in await answer(first), "the first is answered"
        expires_at = stand.store._leases[first].expires_at
        up.send(b'{"ID":"%d"}\n' % first)
        await until(lambda: stand.store._leases[first].expires_at > expires_at)
        await stand.write(ORDER, b"1")
        assert b'"events"' in await up.until(b"}\n"), "renewed, and not answered"
        assert b'"ID":"%d","TTL":' % second in await answer(second), "another lease is"
        assert b'"ID":"%d","TTL":' % first in await answer(first)
        stand.store.available = False
        assert b'"ID"' not in await answer(first), "a sign of life, at once"
        stand.store.available = True
        monkeypatch.setattr(pulse, "ANSWER_S", 0.0)
        assert b'"ID":"%d","TTL":' % first in await answer(first), "after a while it is answered again"
        monkeypatch.setattr(pulse, "ANSWER_S", 600.0)
        await stand.store.revoke(first)
        assert b'"ID":"%d"}' % first in await answer(first), "that it has ended is said at once"
        monkeypatch.setattr(pulse, "SPARING_PROGRESS_S", 0.01)
        assert b'"ID"' not in await up.until(b"}\n"), "who does not beat is told that it is heard"


async def test_a_watch_that_answers_no_beat_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heartbeat, "silence_s", 0.3)
    opened = 0

    @web.middleware
    async def count(request: web.Request, handler: Any) -> web.StreamResponse:
        nonlocal opened
        opened += request.path == wire.WATCH
        answer: web.StreamResponse = await handler(request)
        return answer

    async with Stand() as stand, stand.seen_as(count):
        monkeypatch.setattr(stand.relay._pulse, "_look", asyncio.Event().wait)
        async with Beating(stand, inactivity_s=0.0) as pod:
            await until(lambda: opened >= 2)
            await stand.write(ORDER, b"1")
            await pod.follower.until(2)


async def test_a_watch_that_owes_an_answer_is_opened_anew_once_a_request_was_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Stand() as stand, Beating(stand) as pod:
        await until(lambda: pod.heartbeat.answers)
        monkeypatch.setattr(stand.relay._pulse, "_look", asyncio.Event().wait)
        feeling = set(stand.relay._pulse._felt)
        await until(lambda: pod.heartbeat.request_at < time.monotonic() - 0.5)
        assert set(stand.relay._pulse._felt) == feeling, "silence alone may be the store's"
        assert await in_thread(pod.client.keep_alive, pod.lease)
        pod.heartbeat.hold(pod.lease)
        await until(lambda: stand.relay._pulse._felt - feeling)


async def test_a_watch_may_end_while_its_lease_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stand() as stand:
        _, granted = await stand.post("/v3/lease/grant", {"TTL": "30"})
        asked, release = asyncio.Event(), asyncio.Event()
        renew = stand.store.keep_all_alive

        async def slow(leases: Any) -> Any:
            asked.set()
            await release.wait()
            return await renew(leases)

        monkeypatch.setattr(stand.store, "keep_all_alive", slow)
        async with stand.beating({"key": b64(ORDER)}) as up:
            await up.until(b'"created":true}}\n')
            up.send(json.dumps({"ID": granted["ID"]}).encode() + b"\n")
            await asked.wait()
            stand.now += relay.WATCH_S * 2
            await stand.write(ORDER, b"1")
            await until(lambda: not stand.open_watches())
            release.set()
        async with Beating(stand) as pod:
            await until(lambda: True in pod.heartbeat.answers)


async def test_a_pod_that_beat_and_went_away_before_the_look_is_not_cut_off() -> None:
    async with Stand() as stand, stand.beating({"key": b64(ORDER)}) as up:
        await up.until(b'"created":true}}\n')
        beats = stand.beats()
        beats.set_exception(ConnectionResetError("Connection lost"))
        beats.feed_data(b"x")
        (one,) = stand.relay._pulse._felt
        assert one.beats is not None
        await until(lambda: one.beats is None or not one.beats.waiting)
        assert stand.cuts(500) == 0
        assert stand.open_watches() == 1


async def test_a_mistake_that_one_pod_brings_out_does_not_silence_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stand() as stand, Beating(stand) as pod:
        check = stand.relay._pulse._admit

        def mistaken(who: Any, lease: int) -> None:
            if lease == 4711:
                raise ZeroDivisionError
            check(who, lease)

        monkeypatch.setattr(stand.relay._pulse, "_admit", mistaken)
        async with stand.beating({"key": b64(KEYS.order("shop", BOB.uid))}, token="bob") as up:
            await up.until(b'"created":true}}\n')
            up.send(b'{"ID":"4711"}\n')
            await up.rest()
        pod.heartbeat.answers.clear()
        await until(lambda: True in pod.heartbeat.answers)


async def test_a_request_that_is_ended_leaves_a_watch_without_beats() -> None:
    async with Stand() as stand, stand.beating({"key": b64(ORDER)}) as up:
        await up.until(b"created")
        up.send_raw(b"0\r\n\r\n")
        await stand.write(ORDER, b"1")
        await up.until(b"events")


# --- who takes no beats


class Older:
    """A relay of before beats: it waits for the end of the request, and announces nothing."""

    def __init__(self, stand: Stand) -> None:
        self.announces = False
        self.beaten_up = 0
        stand_handle = {route.path: route.handler for route in stand.relay.routes()}

        @web.middleware
        async def middleware(request: web.Request, _handler: Any) -> web.StreamResponse:
            if "Transfer-Encoding" in request.headers:
                self.beaten_up += 1
            headers = request.headers.copy()
            headers.pop(wire.HEARTBEAT, None)
            older = request.clone(headers=headers)
            answer = await stand_handle[request.path](older)
            if not self.announces:
                answer.headers.pop(wire.HEARTBEAT, None)
            return answer

        self.middleware = middleware


async def test_an_older_relay_is_asked_by_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Stand() as stand, stand.seen_as(Older(stand).middleware), Beating(stand) as pod:
        await stand.write(ORDER, b"1")
        await pod.follower.until(2)
        await until(lambda: pod.heartbeat.request_at < time.monotonic())
        assert await in_thread(pod.client.keep_alive, pod.lease)
        assert not pod.heartbeat.answers


async def test_an_older_replica_behind_the_same_address_gets_the_end_that_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "OPEN_S", 0.2)
    async with Stand() as stand:
        older = Older(stand)
        older.announces = True  # the replica that was asked before takes beats
        async with stand.seen_as(older.middleware), Beating(stand) as pod:
            await until(lambda: older.beaten_up == 1)
            await stand.write(ORDER, b"1")
            await pod.follower.until(2)
            await until(lambda: pod.heartbeat.request_at < time.monotonic())
            assert not pod.heartbeat.answers


# --- the lease as the pod knows it


def test_without_a_lease_there_is_nothing_to_renew() -> None:
    assert Heartbeat(10.0).request_at == float("inf")


def test_a_request_is_due_within_a_period_where_nobody_takes_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ebbtide.etcd.heartbeat.time.monotonic", lambda: now[0])
    heartbeat = Heartbeat(10.0)
    heartbeat.hold(7)
    assert 108.0 <= heartbeat.request_at <= 110.0
    assert 0.0 <= heartbeat.carry() <= 5.0
    assert heartbeat.request_at == 125.0, "every second beat is answered"
    now[0] = 109.0
    heartbeat.answered(7, alive=True)
    assert heartbeat.request_at == 134.0
    now[0] = 128.0
    heartbeat.lose()
    assert heartbeat.request_at == 130.5, "a moment for the watch to come back"
    now[0] = 140.0
    heartbeat.lose()
    assert heartbeat.request_at == 130.5
    heartbeat.answered(8, alive=False)
    assert heartbeat.lease == 7, "an answer about an earlier lease says nothing of this one"


def test_two_answers_may_fail_to_come_before_a_pod_gives_a_watch_up() -> None:
    apart_s = 2 * KEEP_ALIVE_S + pulse.LOOK_S
    assert 2 * apart_s < Heartbeat(KEEP_ALIVE_S).silence_s
    assert apart_s < pulse.SPARING_PROGRESS_S


def test_a_pod_doubts_no_watch_that_says_all_that_it_owes(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat(KEEP_ALIVE_S)
    now = time.monotonic()
    heartbeat.hold(7)
    assert not heartbeat.doubts(now - pulse.SPARING_PROGRESS_S - pulse.LOOK_S)
    assert heartbeat.doubts(now - 2.5 * KEEP_ALIVE_S)


def test_every_second_beat_is_answered_however_they_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shortest_s, longest_s = 0.8 * KEEP_ALIVE_S, KEEP_ALIVE_S
    assert longest_s + pulse.LOOK_S < pulse.ANSWER_S < 2 * shortest_s - pulse.LOOK_S


def test_a_pod_asks_by_a_request_before_its_lease_ends_and_after_an_answer_is_due() -> None:
    heartbeat = Heartbeat(KEEP_ALIVE_S)
    heartbeat.hold(7)
    heartbeat.carry()
    left_s = heartbeat.request_at - time.monotonic()
    assert 2 * KEEP_ALIVE_S + pulse.LOOK_S + 5 < left_s < LEASE_S - 10


def test_an_older_library_hears_something_within_its_patience() -> None:
    assert pulse.BEATEN_PROGRESS_S + pulse.LOOK_S < INACTIVITY_S
