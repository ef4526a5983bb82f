"""No watch loses anything, whatever happens to the store or the way to it: every client of ours, real etcd."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ebbtide.etcd import Changed, EtcdClient, EtcdError, Removed, Resync
from tests.contract.member import Member
from tests.contract.proxy import Proxy
from tests.contract.watching import Etcd3Watching, GatewayWatching, SyncWatching, state_of, wait_until

pytestmark = pytest.mark.etcd
PREFIX = "/w/"


@pytest.fixture(params=[SyncWatching, GatewayWatching, Etcd3Watching])
def watching_of(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Start a watch; it is stopped at the end of the test."""
    started = []

    def start(*arguments: Any, **named: Any) -> Any:
        watching = request.param(*arguments, **named)
        started.append(watching)
        return watching

    yield start
    for watching in started:
        watching.stop()


@pytest.fixture
def client(etcd: Member) -> Iterator[Any]:
    with EtcdClient([etcd.url], timeout_s=2) as client:
        yield client


@pytest.fixture
def proxy(etcd: Member) -> Iterator[Any]:
    proxy = Proxy(etcd.port)
    yield proxy
    proxy.close()


class Writer:
    """Put numbered values without a pause, and remember which ones the store acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[bytes] = []
        self.failures = 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with EtcdClient([self._url], timeout_s=1) as client:
            while not self._stop.is_set():
                number += 1
                value = b"%d" % number
                try:
                    client.put(f"{PREFIX}{number % 7}", value)
                except EtcdError:
                    self.failures += 1
                    self._stop.wait(0.02)
                else:
                    self.acknowledged.append(value)
                    self._stop.wait(0.002)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def compact(client: Any) -> int:
    revision: int = client.put("/compacted-at", b"")
    client._transport.call("compact", "/v3/kv/compaction", b'{"revision":"%d"}' % revision, write=True)
    return revision


def values(changes: list[Any]) -> list[bytes]:
    return [change.key_value.value for change in changes if isinstance(change, Changed)]


@pytest.mark.timeout(120)
def test_every_acknowledged_put_arrives_over_a_killed_store(etcd: Member, watching_of: Any) -> None:
    watching = watching_of([etcd.url], PREFIX)
    writer = Writer(etcd.url)
    for round_ in range(3):
        wait_until(lambda: len(writer.acknowledged) > 150 * (round_ + 1))  # noqa: B023 (called at once)
        etcd.kill()
        failures = writer.failures
        wait_until(lambda: writer.failures > failures + 2)  # noqa: B023
        etcd.start()
    wait_until(lambda: len(writer.acknowledged) > 600)
    writer.stop()
    assert writer.failures > 6
    wait_until(lambda: set(writer.acknowledged) <= set(values(watching.changes)))
    # None twice, and in order: what was written without an answer may be there too, and take effect later.
    seen = values(watching.changes)
    assert len(seen) == len(set(seen))
    answered = set(writer.acknowledged)
    assert [value for value in seen if value in answered] == writer.acknowledged
    assert sum(isinstance(change, Resync) for change in watching.changes) == 1
    revisions = [change.revision for change in watching.changes]
    assert revisions == sorted(revisions)


def test_a_catch_up_that_is_cut_again_and_again_loses_nothing(
    etcd: Member, client: Any, proxy: Proxy, watching_of: Any
) -> None:
    client.put(f"{PREFIX}start", b"")
    watching = watching_of([proxy.url], PREFIX)
    proxy.silent = True
    wanted = [b"%06d" % number + b"x" * 8_000 for number in range(400)]
    for value in wanted:
        client.put(f"{PREFIX}big", value)
    # Each of these comes back to more than it can carry: it answers `created`, tells some, and breaks.
    proxy.cuts = [500, 100_000, 300_000, 1_000_000, 2_000_000]
    proxy.silent = False
    proxy.cut()
    wait_until(lambda: len(values(watching.changes)) >= len(wanted))
    assert values(watching.changes) == wanted
    assert proxy.cuts == []


def test_a_compaction_while_away_gives_everything_anew(
    etcd: Member, client: Any, proxy: Proxy, watching_of: Any
) -> None:
    for name in ("kept", "changed", "gone"):
        client.put(PREFIX + name, b"old")
    watching = watching_of([proxy.url], PREFIX)
    first = len(watching.changes)
    proxy.silent = True
    proxy.cut()
    wait_until(lambda: not watching.connected)
    client.put(PREFIX + "changed", b"new")
    client.delete(PREFIX + "gone")
    client.put(PREFIX + "short", b"-")
    client.delete(PREFIX + "short")
    client.put(PREFIX + "added", b"new")
    revision = compact(client)
    proxy.silent = False
    proxy.cut()
    wait_until(lambda: len(watching.changes) > first)
    wait_until(lambda: watching.connected)
    client.put(PREFIX + "after", b"-")
    wait_until(lambda: PREFIX + "after" in state_of(watching.changes))
    resync = watching.changes[first]
    assert isinstance(resync, Resync)
    assert not resync.restarted
    assert resync.revision >= revision
    assert {item.key.removeprefix(PREFIX): item.value for item in resync.key_values} == {
        "kept": b"old",
        "changed": b"new",
        "added": b"new",
    }
    gone = [change.key for change in watching.changes if isinstance(change, Removed)]
    # Who listed by himself (the store's user) compares by himself; the library's watch names what is gone.
    assert gone == ([PREFIX + "gone"] if isinstance(watching, SyncWatching) else [])


def test_a_frozen_store_is_noticed_and_taken_up_again(etcd: Member, client: Any, watching_of: Any) -> None:
    watching = watching_of([etcd.url], PREFIX, inactivity_s=2.5, timeout_s=0.5)
    client.put(PREFIX + "a", b"1")
    wait_until(lambda: values(watching.changes) == [b"1"])
    etcd.freeze()
    wait_until(lambda: not watching.connected)
    etcd.thaw()
    wait_until(lambda: watching.connected)
    client.put(PREFIX + "a", b"2")
    wait_until(lambda: values(watching.changes) == [b"1", b"2"])


def test_a_connection_that_only_looks_alive_is_given_up(
    etcd: Member, client: Any, proxy: Proxy, watching_of: Any
) -> None:
    watching = watching_of([proxy.url], PREFIX, inactivity_s=1.5, timeout_s=0.5)
    proxy.silent = True
    client.put(PREFIX + "a", b"1")
    wait_until(lambda: not watching.connected)
    proxy.silent = False
    wait_until(lambda: values(watching.changes) == [b"1"])


def test_silence_of_a_quiet_store_is_no_failure(etcd: Member, client: Any, proxy: Proxy, watching_of: Any) -> None:
    """Below the store's own interval of progress lines (1 s here) the watch just connects anew."""
    watching = watching_of([proxy.url], PREFIX, inactivity_s=0.2)
    before = proxy.accepted
    states = set()

    def three_more() -> bool:
        states.add(watching.connected)
        return proxy.accepted >= before + 3

    wait_until(three_more)
    client.put(PREFIX + "a", b"1")
    wait_until(lambda: values(watching.changes) == [b"1"])
    assert states == {True}


@pytest.mark.timeout(120)
def test_a_store_that_lost_its_data_is_told_from_a_slow_one(
    etcd: Member, client: Any, watching_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ebbtide.etcd.resume.RESTART_PROOF_S", 1.0)
    for number in range(20):
        client.put(f"{PREFIX}{number % 4}", b"old")
    watching = watching_of([etcd.url], PREFIX)
    client.put(PREFIX + "0", b"newest")
    wait_until(lambda: b"newest" in values(watching.changes))
    etcd.kill()
    etcd.wipe()
    etcd.start()
    client.put(PREFIX + "0", b"reborn")
    wait_until(lambda: any(isinstance(change, Resync) and change.restarted for change in watching.changes))
    # The list that found it out may be older than the first new key, which then comes over the watch.
    wait_until(lambda: state_of(watching.changes) == {PREFIX + "0": b"reborn"})
    wait_until(lambda: watching.connected)
    client.put(PREFIX + "1", b"on")
    wait_until(lambda: state_of(watching.changes) == {PREFIX + "0": b"reborn", PREFIX + "1": b"on"})


def test_a_store_that_lost_its_data_and_counted_on_is_told_from_the_old_one(
    etcd: Member, client: Any, proxy: Proxy, watching_of: Any
) -> None:
    for name in ("kept", "gone"):
        client.put(PREFIX + name, b"old")
    watching = watching_of([proxy.url], PREFIX)
    seen = client.put(PREFIX + "kept", b"last")
    wait_until(lambda: b"last" in values(watching.changes))
    before = len(watching.changes)
    proxy.refusing = True
    proxy.cut()
    wait_until(lambda: not watching.connected)
    etcd.kill()
    etcd.wipe(token="another")
    etcd.start()
    # Past all that the watch saw: a revision tells nothing any more.
    revision = 0
    while revision <= seen + 5:
        revision = client.put(PREFIX + "kept", b"new")
    proxy.refusing = False
    wait_until(lambda: len(watching.changes) > before)
    resync = watching.changes[before]
    assert isinstance(resync, Resync)
    assert resync.restarted
    wait_until(lambda: state_of(watching.changes) == {PREFIX + "kept": b"new"})
    wait_until(lambda: watching.connected)
    client.put(PREFIX + "on", b"-")
    wait_until(lambda: PREFIX + "on" in state_of(watching.changes))
    assert sum(isinstance(change, Resync) and change.restarted for change in watching.changes) == 1


def test_goes_to_the_endpoint_that_lives(etcd: Member, client: Any, watching_of: Any) -> None:
    dead = Member()
    watching = watching_of([f"http://127.0.0.1:{dead.port}", etcd.url, dead.url], PREFIX)
    dead.close()
    client.put(PREFIX + "a", b"1")
    wait_until(lambda: values(watching.changes) == [b"1"])


def test_a_stopped_watch_ends_at_once_whatever_the_store_does(etcd: Member) -> None:
    watching = SyncWatching([etcd.url], PREFIX)
    etcd.freeze()
    asked_at = time.monotonic()
    watching.stop()
    assert time.monotonic() - asked_at < 5  # not the patience of a connection, which is 45 s
