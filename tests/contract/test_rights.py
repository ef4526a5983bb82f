"""Direct etcd with a user for each namespace: the commands of docs/store.md, run as they stand, and what they give.

A user may read the orders and phases of its namespace and write its reports, and nothing else, over both protocols.
"""

import asyncio
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebbtide.agent import Agent
from ebbtide.etcd import Changed, Delete, EtcdClient, PermissionDenied, Put
from ebbtide.protocol import Desired, Keys, Order, Phase, PodState, Report, RolloutPhase
from ebbtide.settings import Settings
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.ports import StoreUnavailable
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from tests.contract.faults import administer, login, until
from tests.contract.member import Member, control_program, program, version_of
from tests.contract.watching import wait_until

pytestmark = pytest.mark.etcd
PAGE = Path(__file__).parents[2] / "docs/store.md"
KEYS = Keys()
ORDERS = WorkloadKey("shop", "deployment", "orders")
SHOP: dict[str, Any] = {"username": "shop", "password": "shop-secret"}
OPERATOR: dict[str, Any] = {"username": "ebbtide", "password": "operator-secret"}


def commands() -> list[str]:
    """Return the etcdctl lines of the page's chapter about users, in order."""
    chapter = PAGE.read_text().partition("\n## Users\n")[2].partition("\n## ")[0]
    return re.findall(r"^\$ (etcdctl [^#\n]*[^#\s])", chapter, re.MULTILINE)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Member]:
    """An etcd that was set up by the page, with something in it that is none of the shop's business."""
    member = Member("--watch-progress-notify-interval=1s")
    try:
        member.start()
        with EtcdClient([member.url]) as client:
            client.put(KEYS.order("bank", "uid-eve"), b"secret")
            client.put(KEYS.report("bank", "uid-eve"), b"secret")
            client.put("/registry/secrets/shop/token", b"secret")
        environment = {
            "PATH": f"{Path(control_program()).parent}:{os.environ['PATH']}",
            "ETCDCTL_ENDPOINTS": member.url,
        }
        for command in commands():
            subprocess.run(command.split(), check=True, capture_output=True, env=environment, timeout=30)
        yield member
    finally:
        member.close()


@pytest.fixture
def shop(guarded: Member) -> Iterator[Any]:
    with EtcdClient([guarded.url], **SHOP) as client:
        yield client


def test_the_page_sets_up_the_operator_and_a_namespace() -> None:
    text = "\n".join(commands())
    for name in ("user add ebbtide:", "user add shop:", "auth enable"):
        assert f"etcdctl {name}" in text


async def test_the_operators_user_does_all_that_the_operator_does(guarded: Member) -> None:
    for adapter in (Gateway, Etcd3):
        store = adapter([guarded.url], **login(OPERATOR))
        state = MirroredDrainState(store)
        task = asyncio.create_task(state.run())
        async with asyncio.timeout(20):
            await state.synced()
        epoch = await state.lead("operator")
        await state.send_order("shop", "uid-1", Order(desired=Desired.SERVE, generation=1, epoch=epoch))
        await state.publish_phase(ORDERS, Phase(phase=RolloutPhase.STABLE))
        await until(lambda: state.healthy)  # noqa: B023 (called at once)
        await state.resign()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


def test_a_namespaces_user_reads_its_orders_and_writes_its_reports(shop: EtcdClient, guarded: Member) -> None:
    order, phase = KEYS.order("shop", "uid-2"), KEYS.phase("shop", "deployment", "orders")
    with EtcdClient([guarded.url], **OPERATOR) as operator:
        operator.put(order, b"order")
        operator.put(phase, b"phase")
    assert [found.value for key in (order, phase) if (found := shop.get(key))] == [b"order", b"phase"]
    lease = shop.grant(30)
    shop.put(KEYS.report("shop", "uid-2"), b"report", lease=lease)
    assert shop.keep_alive(lease)
    shop.put(KEYS.report("shop", "uid-2"), b"final")


def test_a_namespaces_user_watches_its_orders(shop: EtcdClient, guarded: Member) -> None:
    order = KEYS.order("shop", "uid-3")
    stop = threading.Event()
    changes: list[Any] = []
    watch = shop.watch([order], stop=stop)

    def collect() -> None:
        for batch in watch:
            changes.extend(batch.changes)

    thread = threading.Thread(target=collect)
    thread.start()
    wait_until(lambda: watch.connected)
    with EtcdClient([guarded.url], **OPERATOR) as operator:
        operator.put(order, b"order")
    wait_until(lambda: any(isinstance(change, Changed) for change in changes))
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_the_librarys_agent_obeys_and_reports_by_such_a_user(guarded: Member) -> None:
    """All that a pod does, not only the calls that a test thinks of."""
    seen: list[Order] = []
    settings = Settings(pod_namespace="shop", pod_uid="uid-4", workload="deployment/orders", endpoints=(guarded.url,))

    def report(sequence: int, phase_revision: int) -> Report:
        return Report(state=PodState.SERVING, sequence=sequence, boot_id="b", phase_revision=phase_revision)

    agent = Agent(
        settings,
        make_report=report,
        count=lambda: 0,
        on_order=seen.append,
        client=EtcdClient([guarded.url], **SHOP),
    )
    agent.start()
    wait_until(lambda: agent.connected)
    order = Order(desired=Desired.DRAIN, generation=1, epoch=1)
    with EtcdClient([guarded.url], **OPERATOR) as operator:
        operator.put(KEYS.order("shop", "uid-4"), order.encode())
        wait_until(lambda: order in seen)
        assert agent.finish(10)
        final = operator.get(KEYS.report("shop", "uid-4"))
    assert final is not None
    assert final.lease == 0


OTHERS = [
    KEYS.order("bank", "uid-eve"),
    KEYS.report("bank", "uid-eve"),
    KEYS.report("shop", "uid-1"),  # writes them, does not read them
    KEYS.phase("bank", "deployment", "vault"),
    KEYS.request("shop", "uid-1"),
    KEYS.leader,
    f"{KEYS.records}shop/deployment/orders/1-uid-1",
    KEYS.orders,
    f"{KEYS.orders}shop",
    f"{KEYS.orders}shop-two/uid-1",
    f"{KEYS.orders}shop0",
    "/registry/secrets/shop/token",
]


@pytest.mark.parametrize("key", OTHERS)
def test_nothing_else_is_read(shop: EtcdClient, key: str) -> None:
    with pytest.raises(PermissionDenied):
        shop.get(key)


@pytest.mark.parametrize("prefix", ["/", f"{KEYS.prefix}/", KEYS.orders, f"{KEYS.orders}shop", KEYS.reports])
def test_nothing_wider_is_listed_or_watched(shop: EtcdClient, prefix: str) -> None:
    with pytest.raises(PermissionDenied):
        shop.range(prefix)
    with pytest.raises(PermissionDenied):
        shop.delete(prefix, prefix=True)
    end = json.dumps({"create_request": {"key": "Lw==", "range_end": "AA=="}}).encode()
    stream = shop._transport.open_stream("watch", "/v3/watch", end, lambda: False)
    line = json.loads(stream.lines(10, lambda: False)[-1])
    stream.close()
    assert line["result"]["canceled"]
    assert "permission" in line["result"]["cancel_reason"].lower()


@pytest.mark.parametrize(
    "key", [*(key for key in OTHERS if key != KEYS.report("shop", "uid-1")), KEYS.order("shop", "uid-1")]
)
def test_nothing_else_is_written(shop: EtcdClient, key: str) -> None:
    for attempt in (
        lambda: shop.put(key, b"forged"),
        lambda: shop.delete(key),
        lambda: shop.transact([], [Put(key, b"forged")]),
        lambda: shop.transact([], [Put(KEYS.report("shop", "uid-1"), b"-"), Delete(key)]),
    ):
        with pytest.raises(PermissionDenied):
            attempt()


@pytest.fixture
def sound() -> None:
    """Have an etcd with the fixes that docs/store.md asks for."""
    if version_of(program()) < (3, 5):
        pytest.skip("an etcd before 3.5 lets a user touch leases and administer: docs/store.md says which one to run")


@pytest.mark.usefixtures("sound")
def test_a_lease_that_holds_anothers_report_is_not_touched(shop: EtcdClient, guarded: Member) -> None:
    with EtcdClient([guarded.url], **OPERATOR) as operator:
        lease = operator.grant(60)
        operator.put(KEYS.report("bank", "uid-eve"), b"report", lease=lease)
        with pytest.raises(PermissionDenied):
            shop.revoke(lease)
        with pytest.raises(PermissionDenied):
            shop.keep_alive(lease)
        with pytest.raises(PermissionDenied):
            shop.put(KEYS.report("shop", "uid-1"), b"report", lease=lease)
        assert operator.get(KEYS.report("bank", "uid-eve")) is not None


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("auth/user/add", {"name": "mallory", "password": "m"}),
        ("auth/user/grant", {"user": "shop", "role": "root"}),
        ("auth/role/grant", {"name": "shop", "perm": {"permType": "READWRITE", "key": "AA==", "range_end": "AA=="}}),
        ("auth/disable", {}),
        ("kv/compaction", {"revision": "1"}),
        ("maintenance/defragment", {}),
        ("maintenance/snapshot", {}),
    ],
)
def test_nothing_is_administered(shop: EtcdClient, path: str, document: dict[str, Any]) -> None:
    with pytest.raises(PermissionDenied):
        administer(shop, path, document)


def test_nobody_without_a_password_gets_in(guarded: Member) -> None:
    for credentials in ({}, {"username": "shop", "password": "guessed"}):
        arguments: dict[str, Any] = credentials
        with (
            EtcdClient([guarded.url], **arguments) as client,
            pytest.raises(Exception, match=r"(?i)user|password|auth"),
        ):
            client.get(KEYS.order("shop", "uid-1"))


async def test_over_grpc_the_rights_are_the_same(guarded: Member) -> None:
    store = Etcd3([guarded.url], **login(SHOP))
    revision = await store.transact([], [Put(KEYS.report("shop", "uid-5"), b"report")])
    assert revision is not None
    await store.get(KEYS.order("shop", "uid-5"))
    for key in (KEYS.leader, KEYS.order("bank", "uid-eve")):
        with pytest.raises(StoreUnavailable, match="permission denied"):
            await store.get(key)
        with pytest.raises(StoreUnavailable, match="permission denied"):
            await store.transact([], [Put(key, b"forged")])
    await store.close()
