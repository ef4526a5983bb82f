"""Mutual TLS, with the certificates that the operator makes for its own etcd: the library's client, both adapters."""

import asyncio
import contextlib
import datetime as dt
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebbtide.etcd import Changed, EtcdClient, Overloaded, TimedOut, Unavailable
from ebbtide_operator.cluster.authority import Leaf, Pair, make_authority, make_leaf
from ebbtide_operator.ports import Put, StoreUnavailable
from ebbtide_operator.settings import parse
from ebbtide_operator.store.adapters import make_store
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.etcd3_connection import Pem
from ebbtide_operator.store.gateway import Gateway
from tests.contract.member import Member, control_program
from tests.contract.watching import collect, wait_until

pytestmark = pytest.mark.etcd

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = make_authority("test authority", NOW)
STRANGER = make_authority("another authority", NOW)
PAGE = Path(__file__).parents[2] / "docs/store.md"
SMALL_QUOTA_BYTES = 16 * 2**20
LOOPBACK = ("localhost", "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.certificate)
    return tmp_path


def stored(folder: Path, name: str, pair: Pair) -> Any:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    return certificate, key


def a_member(folder: Path, leaf: Leaf, *flags: str) -> Member:
    certificate, key = stored(folder, "server", make_leaf(AUTHORITY, leaf, NOW))
    return Member(
        "--client-cert-auth=true",
        f"--trusted-ca-file={folder / 'ca.crt'}",
        f"--cert-file={certificate}",
        f"--key-file={key}",
        *flags,
        scheme="https",
    )


@pytest.fixture
def member(folder: Path) -> Iterator[Any]:
    member = a_member(folder, Leaf("etcd", LOOPBACK, server=True, client=True))
    try:
        member.start()
        yield member
    finally:
        member.close()


def context(folder: Path, authority: Pair | None, *, trusts: Pair = AUTHORITY) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cadata=trusts.certificate.decode())
    if authority is not None:
        pair = make_leaf(authority, Leaf("ebbtide", server=False, client=True), NOW)
        made.load_cert_chain(*stored(folder, "client", pair))
    return made


def pem_of(authority: Pair) -> tuple[bytes, bytes]:
    pair = make_leaf(authority, Leaf("ebbtide", server=False, client=True), NOW)
    return pair.certificate, pair.key


def a_store(adapter: Any, folder: Path, url: str, authority: Pair, *, trusts: Pair = AUTHORITY) -> Any:
    if adapter is Gateway:
        tls = context(folder, authority, trusts=trusts)
        return Gateway([url], tls=lambda: tls)
    pem = Pem(trusts.certificate, *pem_of(authority))
    return Etcd3([url], pem=lambda: pem)


def test_a_client_with_a_certificate_does_everything(folder: Path, member: Member) -> None:
    with EtcdClient([member.url], tls=context(folder, AUTHORITY)) as client:
        lease = client.grant(30)
        client.put("/a", b"1", lease=lease)
        assert client.keep_alive(lease)
        stop = threading.Event()
        watch = client.watch(["/a"], stop=stop)
        changes: list[Any] = []
        thread = threading.Thread(target=collect, args=(watch, changes))
        thread.start()
        wait_until(lambda: watch.connected)
        for number in range(20):
            client.put("/a", b"%d" % number + b"x" * 50_000)
        wait_until(lambda: len(changes) == 21)
        asked_at = time.monotonic()
        stop.set()
        thread.join(10)
        assert time.monotonic() - asked_at < 5


@pytest.mark.parametrize("adapter", [Gateway, Etcd3])
async def test_a_store_with_a_certificate_does_everything(folder: Path, member: Member, adapter: Any) -> None:
    store = a_store(adapter, folder, member.url, AUTHORITY)
    revision = await store.transact([], [Put("/a", b"1")])
    assert revision is not None
    watch = store.watch("/", revision - 1)
    (changed,) = await anext(watch)
    assert isinstance(changed, Changed)
    assert changed.key_value.value == b"1"
    assert store.healthy
    await watch.aclose()
    await store.close()


@pytest.mark.parametrize("authority", [None, STRANGER])
async def test_nobody_else_gets_in(folder: Path, member: Member, authority: Any) -> None:
    tls = context(folder, authority)
    with EtcdClient([member.url], tls=tls) as client, pytest.raises(Unavailable):
        client.get("/a")
    gateway = Gateway([member.url], tls=lambda: tls)
    with pytest.raises(StoreUnavailable):
        await gateway.get("/a")
    await gateway.close()


async def test_a_stranger_does_not_get_in_over_grpc(folder: Path, member: Member) -> None:
    store = a_store(Etcd3, folder, member.url, STRANGER)
    with pytest.raises(StoreUnavailable):
        await store.get("/a")
    await store.close()


async def test_without_a_certificate_the_adapter_for_grpc_says_so(folder: Path, member: Member) -> None:
    store = Etcd3([member.url], pem=lambda: None)
    with pytest.raises(StoreUnavailable, match="no certificate yet") as raised:
        await store.transact([], [Put("/a", b"1")])
    assert not raised.value.uncertain
    await store.close()


async def test_a_renewed_certificate_is_used_from_the_next_call_on(folder: Path, member: Member) -> None:
    """The etcd3 adapter cannot load it into a context that is in use, as the gateway's does."""
    wrong, right = pem_of(STRANGER), pem_of(AUTHORITY)
    held = [Pem(AUTHORITY.certificate, *wrong)]
    store = Etcd3([member.url], pem=lambda: held[0])
    with pytest.raises(StoreUnavailable):
        await store.get("/a")
    held[0] = Pem(AUTHORITY.certificate, *right)
    assert await store.get("/a") is None
    await store.close()


async def test_a_certificate_that_cannot_be_read_is_a_store_that_is_away(folder: Path, member: Member) -> None:
    right = Pem(AUTHORITY.certificate, *pem_of(AUTHORITY))
    held: list[Pem] = []

    def pem() -> Pem:
        if not held:
            raise FileNotFoundError("tls.crt")
        return held[0]

    store = Etcd3([member.url], pem=pem)
    with pytest.raises(StoreUnavailable, match=r"tls\.crt") as raised:
        await store.transact([], [Put("/a", b"1")])
    assert not raised.value.uncertain
    async with contextlib.aclosing(store.watch("/", 1)) as batches:
        news = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        held.append(right)
        await store.transact([], [Put("/a", b"1")])
        async with asyncio.timeout(20):
            assert await news
    await store.close()


@pytest.mark.parametrize("adapter", ["gateway", "etcd3"])
async def test_replaced_files_are_used_without_a_restart(tmp_path: Path, adapter: str) -> None:
    def issue(authority: Pair) -> None:
        (tmp_path / "ca.crt").write_bytes(authority.certificate)
        for name in ("server", "tls"):
            stored(tmp_path, name, make_leaf(authority, Leaf("etcd", LOOPBACK, server=True, client=True), NOW))

    issue(AUTHORITY)
    member = a_member(tmp_path, Leaf("etcd", LOOPBACK, server=True, client=True))
    settings = parse([f"--etcd-adapter={adapter}", f"--etcd-endpoints={member.url}", f"--etcd-tls={tmp_path}"], {})
    certificates: Any = None
    store = make_store(settings, certificates)
    try:
        await asyncio.to_thread(member.start)
        assert await store.get("/a") is None
        await asyncio.to_thread(member.kill)
        issue(STRANGER)
        await asyncio.to_thread(member.start)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(StoreUnavailable):
                    assert await store.get("/a") is None
                    break
                await asyncio.sleep(0.05)
    finally:
        await store.close()
        member.close()


async def test_a_server_that_is_not_trusted_is_not_talked_to(folder: Path, member: Member) -> None:
    tls = context(folder, AUTHORITY, trusts=STRANGER)
    with EtcdClient([member.url], tls=tls) as client, pytest.raises(Unavailable, match=r"(?i)certificate") as raised:
        client.put("/a", b"secret")
    assert not raised.value.may_have_happened
    for adapter in (Gateway, Etcd3):
        store = a_store(adapter, folder, member.url, AUTHORITY, trusts=STRANGER)
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate") as refused:
            await store.transact([], [Put("/a", b"secret")])
        assert not refused.value.uncertain
        await store.close()


def test_a_server_of_another_name_is_not_talked_to(folder: Path) -> None:
    member = a_member(folder, Leaf("etcd", ("etcd.example",), server=True, client=True))
    try:
        member.start()
        with (
            EtcdClient([member.url], tls=context(folder, AUTHORITY)) as client,
            pytest.raises(Unavailable, match=r"(?i)certificate"),
        ):
            client.get("/a")
    finally:
        member.close()


def test_the_gateway_needs_the_client_purpose_in_the_servers_certificate(folder: Path) -> None:
    """Why the operator's etcd certificate has both: the gateway dials its own server, as a client, with it."""
    member = a_member(folder, Leaf("etcd", LOOPBACK, server=True, client=False))
    try:
        member.start()
        with (
            EtcdClient([member.url], tls=context(folder, AUTHORITY), timeout_s=2) as client,
            pytest.raises((Unavailable, TimedOut)),
        ):
            client.get("/a")
    finally:
        member.close()


@pytest.fixture
def small(folder: Path) -> Iterator[Any]:
    """An embedded etcd with little room, as its pod has it."""
    member = a_member(
        folder, Leaf("etcd", LOOPBACK, server=True, client=True), f"--quota-backend-bytes={SMALL_QUOTA_BYTES}"
    )
    try:
        member.start()
        yield member
    finally:
        member.close()


def lines_of(page: str, chapter: str) -> str:
    """Return the commands of a chapter's first console block."""
    block = page.partition(f"\n{chapter}\n")[2].partition("```console\n")[2].partition("```")[0]
    return block.replace("\n$ ", "\n").removeprefix("$ ")


def test_the_page_makes_room_in_a_full_embedded_etcd(folder: Path, small: Member) -> None:
    page = PAGE.read_text()
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    # In place of kubectl: what it would run in the pod, with the pod's paths.
    kubectl = bin_folder / "kubectl"
    kubectl.write_text(
        f"""#!/bin/bash
        [ "${{*:1:5}}" = "--namespace ebbtide-system exec ebbtide-etcd-0 --" ] && [ "$6" = etcdctl ] || exit 2
        set -- "${{@:7}}"
        set -- "${{@//https:\\/\\/127.0.0.1:2379/{small.url}}}"
        set -- "${{@//\\/etc\\/etcd\\/tls\\/tls/{folder}/server}}"
        exec {control_program()} "${{@//\\/etc\\/etcd\\/tls/{folder}}}"
        """
    )
    kubectl.chmod(0o755)
    environment = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    with EtcdClient([small.url], tls=context(folder, AUTHORITY)) as client:
        with pytest.raises(Overloaded, match="space"):
            for _ in range(2 * SMALL_QUOTA_BYTES // 2**20):
                client.put("/a", bytes(2**20))
        script = f"set -eu\n{lines_of(page, '### etcdctl')}\n{lines_of(page, '## A full database')}"
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        client.put("/a", b"room")
