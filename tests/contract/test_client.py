"""The library's synchronous client against real etcd."""

import asyncio
import contextlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebbtide.etcd import (
    Compare,
    Delete,
    EtcdClient,
    LeaseNotFound,
    PermissionDenied,
    Put,
    Refused,
    Unauthenticated,
)
from ebbtide.etcd import (
    client as client_module,
)
from ebbtide_operator.ports import StoreUnavailable
from ebbtide_operator.settings import parse
from ebbtide_operator.store.adapters import make_store
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from tests.contract.member import Member
from tests.contract.watching import SyncWatching, collect, wait_until

pytestmark = pytest.mark.etcd


@pytest.fixture
def client(shared_etcd: Member) -> Iterator[Any]:
    with EtcdClient([shared_etcd.url]) as client:
        yield client


@pytest.fixture
def prefix() -> str:
    return f"/test/{uuid.uuid4().hex}/"


def test_reads_what_it_wrote(client: Any, prefix: str) -> None:
    assert client.get(prefix + "a") is None
    value = bytes(range(256))
    revision = client.put(prefix + "a", value)
    found = client.get(prefix + "a")
    assert (found.value, found.create_revision, found.mod_revision, found.lease) == (value, revision, revision, 0)
    assert client.put(prefix + "a", b"") > revision
    assert client.get(prefix + "a").value == b""


def test_a_key_of_any_bytes_survives(client: Any, prefix: str) -> None:
    key = prefix + b"\xff\x00/\xc3\xa9".decode(errors="surrogateescape")
    client.put(key, b"1")
    assert [item.key for item in client.range(prefix).key_values] == [key]


def test_a_long_range_is_one_picture_of_the_store(client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAGE", 9)
    for start in range(0, 100, 50):
        client.transact([], [Put(f"{prefix}{number:03}", b"1") for number in range(start, start + 50)])
    result = client.range(prefix)
    assert [item.key for item in result.key_values] == [f"{prefix}{number:03}" for number in range(100)]
    assert result.revision >= result.key_values[-1].mod_revision


def test_deletes_a_key_or_a_prefix_and_says_how_many(client: Any, prefix: str) -> None:
    for name in ("a", "a/1", "a/2", "b"):
        client.put(prefix + name, b"")
    assert client.delete(prefix + "a") == 1
    assert client.delete(prefix + "a") == 0
    assert client.delete(prefix + "a/", prefix=True) == 2
    assert [item.key for item in client.range(prefix).key_values] == [prefix + "b"]


def test_a_transaction_is_all_or_nothing(client: Any, prefix: str) -> None:
    revision = client.put(prefix + "a", b"1")
    lost = client.transact([Compare(prefix + "a", mod_revision=revision - 1)], [Put(prefix + "b", b"")])
    assert not lost.succeeded
    won = client.transact(
        [Compare(prefix + "a", mod_revision=revision), Compare(prefix + "b", create_revision=0)],
        [Put(prefix + "b", b"2"), Delete(prefix + "a")],
    )
    assert won.succeeded
    assert client.get(prefix + "b").mod_revision == won.revision
    assert client.get(prefix + "a") is None


def test_a_lease_lives_while_it_is_kept(client: Any, prefix: str) -> None:
    lease = client.grant(60)
    client.put(prefix + "a", b"", lease=lease)
    assert client.keep_alive(lease)
    client.revoke(lease)
    client.revoke(lease)
    assert client.get(prefix + "a") is None
    assert not client.keep_alive(lease)
    with pytest.raises(LeaseNotFound):
        client.put(prefix + "a", b"", lease=lease)


def test_what_etcd_refuses_is_named(client: Any, prefix: str) -> None:
    with pytest.raises(Refused, match="duplicate key"):
        client.transact([], [Put(prefix + "a", b""), Put(prefix + "a", b"")])


def test_several_keys_are_watched_over_one_connection(client: Any, shared_etcd: Member, prefix: str) -> None:
    client.put(prefix + "one", b"before")
    stop = threading.Event()
    watch = client.watch([prefix + "one", prefix + "two"], stop=stop)
    changes = list(next(watch).changes)
    assert [item.value for item in changes[0].key_values] == [b"before"]
    seen: list[Any] = []
    thread = threading.Thread(target=collect, args=(watch, seen))
    thread.start()
    wait_until(lambda: watch.connected)
    client.put(prefix + "three", b"not ours")
    client.put(prefix + "two", b"2")
    client.delete(prefix + "one")
    wait_until(lambda: len(seen) == 2)
    stop.set()
    thread.join(10)
    assert [type(change).__name__ for change in seen] == ["Changed", "Removed"]
    assert seen[0].key_value.key == prefix + "two"


def test_a_fork_disturbs_neither_side(client: Any, shared_etcd: Member, prefix: str) -> None:
    """The parent's watch goes on; the child uses the same client object with connections of its own."""
    watching = SyncWatching([shared_etcd.url], prefix)
    client.put(prefix + "parent", b"1")
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            client.put(prefix + "child", b"1")
            stop = threading.Event()
            with contextlib.closing(client.watch([prefix + "child"], stop=stop)) as watch:
                (resync,) = next(watch).changes
            lease = client.grant(30)
            status = 0 if len(resync.key_values) == 1 and client.keep_alive(lease) else 2
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    client.put(prefix + "parent", b"2")
    wait_until(lambda: len(watching.changes) == 4)
    assert watching.watch.last_error is None
    watching.stop()


test_a_fork_disturbs_neither_side = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)(test_a_fork_disturbs_neither_side)


# --- users and passwords


def post(member: Member, path: str, document: dict[str, Any], **credentials: Any) -> None:
    """Administer etcd, which the clients do not."""
    with EtcdClient([member.url], **credentials) as admin:
        admin._transport.call(path, f"/v3/auth/{path}", json.dumps(document).encode(), write=True)


@pytest.fixture
def guarded() -> Iterator[Any]:
    """An etcd with users, whose tokens die after two seconds without use."""
    member = Member("--auth-token=simple", "--auth-token-ttl=2")
    try:
        member.start()
        for name, password in (("root", "r"), ("pod", "p")):
            post(member, "user/add", {"name": name, "password": password})
        post(member, "role/add", {"name": "root"})
        post(member, "user/grant", {"user": "root", "role": "root"})
        post(member, "role/add", {"name": "pods"})
        # "/own/" and "/own0"
        permission = {"permType": "READWRITE", "key": "L293bi8=", "range_end": "L293bjA="}
        post(member, "role/grant", {"name": "pods", "perm": permission})
        post(member, "user/grant", {"user": "pod", "role": "pods"})
        post(member, "enable", {})
        yield member
    finally:
        member.close()


def test_logs_in_and_again_when_the_store_forgot_it(guarded: Member) -> None:
    with EtcdClient([guarded.url], username="pod", password="p") as client:
        client.put("/own/a", b"1")
        guarded.kill()  # simple tokens live in the process
        guarded.start()
        found = client.get("/own/a")
        assert found is not None
        assert found.value == b"1"
        lease = client.grant(30)
        assert client.keep_alive(lease)


def test_a_watch_outlives_its_login(guarded: Member) -> None:
    with EtcdClient([guarded.url], username="pod", password="p") as client:
        stop = threading.Event()
        watch = client.watch(["/own/"], prefix=True, stop=stop)
        changes: list[Any] = []
        thread = threading.Thread(target=collect, args=(watch, changes))
        thread.start()
        wait_until(lambda: watch.connected)
        guarded.kill()
        guarded.start()
        # The watch's own try with the dead token is answered with HTTP 200, created and cancelled at once.
        wait_until(lambda: watch.connected)
        client.put("/own/a", b"1")
        wait_until(lambda: len(changes) == 2)
        stop.set()
        thread.join(10)


def test_rights_end_where_the_role_does(guarded: Member) -> None:
    with EtcdClient([guarded.url], username="pod", password="p") as client:
        with pytest.raises(PermissionDenied):
            client.get("/other")
        with pytest.raises(PermissionDenied) as raised:
            client.put("/other", b"")
        assert not raised.value.may_have_happened
        stop = threading.Event()
        watch = client.watch(["/own/a"], stop=stop)
        next(watch)  # what may be listed may be watched


def test_a_refused_watch_says_why_and_does_not_hang(guarded: Member) -> None:
    with EtcdClient([guarded.url], username="pod", password="p") as client:
        stop = threading.Event()
        watch = client.watch(["/other"], stop=stop)
        thread = threading.Thread(target=lambda: list(watch))
        thread.start()
        wait_until(lambda: isinstance(watch.last_error, PermissionDenied))
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("credentials", [{}, {"username": "pod", "password": "wrong"}, {"token": lambda: "made-up"}])
def test_strangers_are_told_that_they_are(guarded: Member, credentials: Any) -> None:
    with EtcdClient([guarded.url], **credentials) as client, pytest.raises(Unauthenticated):
        client.get("/own/a")


@pytest.mark.parametrize("adapter", [Gateway, Etcd3])
async def test_the_operators_store_logs_in_again_too(guarded: Member, adapter: Any) -> None:
    store = adapter([guarded.url], username="root", password=lambda: "r")
    revision = await store.transact([], [Put("/own/a", b"1")])
    async with contextlib.aclosing(store.watch("/own/", revision - 1)) as batches:
        await anext(batches)
        await asyncio.to_thread(guarded.kill)
        await asyncio.to_thread(guarded.start)
        news = asyncio.ensure_future(anext(batches))
        found = await store.get("/own/a")
        assert found is not None
        assert found.value == b"1"
        await store.transact([], [Put("/own/a", b"2")])
        async with asyncio.timeout(20):
            (changed,) = await news
        assert changed.key_value.value == b"2"
    await store.close()


@pytest.mark.parametrize("adapter", ["gateway", "etcd3"])
async def test_the_operators_store_logs_in_with_a_password_that_was_changed(
    guarded: Member, tmp_path: Path, adapter: str
) -> None:
    file = tmp_path / "password"
    file.write_text("r\n")
    settings = parse(
        [
            f"--etcd-adapter={adapter}",
            f"--etcd-endpoints={guarded.url}",
            "--etcd-tls=none",
            "--etcd-username=root",
            f"--etcd-password-file={file}",
        ],
        {},
    )
    certificates: Any = None
    store = make_store(settings, certificates)
    await store.transact([], [Put("/own/a", b"1")])

    async def change(old: str, new: str) -> None:
        document = {"name": "root", "password": new}
        await asyncio.to_thread(post, guarded, "user/changepw", document, username="root", password=old)

    await change("r", "changed")
    with pytest.raises(StoreUnavailable, match="authentication failed"):
        await store.get("/own/a")
    file.write_text("changed\n")
    assert await store.get("/own/a") is not None
    file.unlink()
    await change("changed", "again")
    with pytest.raises(StoreUnavailable, match="password cannot be read"):
        await store.get("/own/a")
    await store.close()


@pytest.mark.parametrize("adapter", [Gateway, Etcd3])
async def test_the_operators_store_says_that_its_password_is_wrong(guarded: Member, adapter: Any) -> None:
    store = adapter([guarded.url], username="root", password=lambda: "wrong")
    with pytest.raises(StoreUnavailable, match="authentication failed"):
        await store.get("/own/a")
    assert not store.healthy
    await store.close()
