"""The in-pod agent against real etcd: what reaches a pod, what is known of it, and what outlives whom."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ebbtide import agent as module
from ebbtide.agent import Agent
from ebbtide.etcd import EtcdClient, KeyValue
from ebbtide.protocol import Desired, Keys, Order, Phase, PodState, Report, RolloutPhase
from ebbtide.settings import Settings
from tests.contract.member import Member
from tests.contract.proxy import Proxy
from tests.contract.watching import wait_until

pytestmark = pytest.mark.etcd

KEYS = Keys()


class RecordingClient(EtcdClient):
    """Note what is written, once it is."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__([url], timeout_s=timeout_s)
        self.writes: list[str] = []

    def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        revision = super().put(key, value, lease=lease)
        self.writes.append("put")
        return revision

    def grant(self, ttl_s: int) -> int:
        lease = super().grant(ttl_s)
        self.writes.append("grant")
        return lease

    def keep_alive(self, lease: int) -> bool:
        alive = super().keep_alive(lease)
        self.writes.append("keep alive")
        return alive


class Pod:
    """An agent, what it was told, and what it is to tell.

    Args:
        url: Where it finds the store.
        store: The store, seen by another way.
    """

    def __init__(self, url: str, store: EtcdClient, *, timeout_s: float = 2.0) -> None:
        # Tests share a store: each pod has a namespace to itself.
        self.namespace, self.uid = uuid.uuid4().hex, "uid-1"
        self.state, self.tasks = PodState.SERVING, 0
        self.told: list[Order | str] = []
        self.client = RecordingClient(url, timeout_s)
        self.store = store
        self.agent = Agent(
            Settings(pod_namespace=self.namespace, pod_uid=self.uid, workload="deployment/orders", endpoints=(url,)),
            make_report=self._report,
            count=lambda: self.tasks,
            on_order=self.told.append,
            on_store_restarted=lambda: self.told.append("store restarted"),
            client=self.client,
        )

    def _report(self, sequence: int, phase_revision: int) -> Report:
        return Report(
            state=self.state, sequence=sequence, boot_id="boot", active=self.tasks, phase_revision=phase_revision
        )

    def start(self) -> "Pod":
        """Start it, and wait until it is heard and hears."""
        self.agent.start()
        wait_until(lambda: self.agent.connected and self.stored is not None)
        # A first try may have failed; what is stored is known here before the agent has heard so.
        wait_until(lambda: "put" in self.client.writes and not self.agent._unheard)
        return self

    def turn(self, state: PodState) -> None:
        self.state = state
        self.agent.edge()

    def order(self, generation: int) -> Order:
        """Write an order for it."""
        order = Order(desired=Desired.DRAIN, generation=generation, epoch=1)
        self.store.put(self.order_key, order.encode())
        return order

    def publish(self, phase: RolloutPhase) -> int:
        """Write the phase of its workload; return its revision."""
        return self.store.put(KEYS.phase(self.namespace, "deployment", "orders"), Phase(phase=phase).encode())

    @property
    def order_key(self) -> str:
        return KEYS.order(self.namespace, self.uid)

    @property
    def stored(self) -> KeyValue | None:
        """Its report as the store has it."""
        return self.store.get(KEYS.report(self.namespace, self.uid))

    @property
    def report(self) -> Report | None:
        stored = self.stored
        return None if stored is None else Report.decode(stored.value)

    def close(self) -> None:
        self.agent.finish(0.1)
        for thread in self.agent._threads:
            if thread.ident is not None:
                thread.join(20)
                assert not thread.is_alive(), f"{thread.name} does not end"


@pytest.fixture
def pod_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a pod that finds the store at a URL, while the test looks at the store itself; it is not started."""
    # The longest pause between two tries is for fleets.
    monkeypatch.setattr(module, "RETRY_MOST_S", 0.5)
    pods: list[Pod] = []
    stores: list[EtcdClient] = []

    def make(url: str, etcd: Member, **named: Any) -> Pod:
        stores.append(EtcdClient([etcd.url], timeout_s=2))
        pods.append(Pod(url, stores[-1], **named))
        return pods[-1]

    yield make
    for pod in pods:
        pod.close()
    for store in stores:
        store.close()


@pytest.fixture
def proxy(etcd: Member) -> Iterator[Any]:
    proxy = Proxy(etcd.port)
    yield proxy
    proxy.close()


PodAt = Callable[..., Pod]


# --- what a pod is told


def test_an_order_reaches_the_pod_from_before_and_after_its_start(shared_etcd: Member, pod_at: PodAt) -> None:
    pod = pod_at(shared_etcd.url, shared_etcd)
    before = pod.order(1)
    pod.start()
    wait_until(lambda: pod.told == [before])
    after = pod.order(2)
    wait_until(lambda: pod.told == [before, after])


def test_what_cannot_be_read_or_is_deleted_is_no_order(
    shared_etcd: Member, pod_at: PodAt, caplog: pytest.LogCaptureFixture
) -> None:
    pod = pod_at(shared_etcd.url, shared_etcd).start()
    first = pod.order(1)
    pod.store.put(pod.order_key, b'{"desired":"dance"}')
    pod.store.put(pod.order_key, b"\xff")
    pod.store.delete(pod.order_key)
    second = pod.order(2)
    wait_until(lambda: second in pod.told)
    assert pod.told == [first, second]
    assert [record.levelname for record in caplog.records if "ignored what" in record.message] == ["WARNING"] * 2
    assert "ERROR" not in {record.levelname for record in caplog.records}, "the watch went on"


def test_an_order_survives_the_death_of_the_store(etcd: Member, proxy: Proxy, pod_at: PodAt) -> None:
    pod = pod_at(proxy.url, etcd).start()
    proxy.refusing = True
    proxy.cut()
    wait_until(lambda: not pod.agent.connected)
    missed = pod.order(1)
    etcd.kill()
    etcd.start()
    assert pod.told == []
    proxy.refusing = False
    wait_until(lambda: pod.told == [missed])
    after = pod.order(2)
    wait_until(lambda: pod.told == [missed, after])


def test_a_state_that_changed_while_the_store_was_dead_is_told_after(etcd: Member, pod_at: PodAt) -> None:
    pod = pod_at(etcd.url, etcd).start()
    etcd.kill()
    wait_until(lambda: not pod.agent.connected)
    pod.turn(PodState.QUIESCING)
    pod.turn(PodState.DRAINING)
    etcd.start()
    wait_until(lambda: pod.report is not None and pod.report.state is PodState.DRAINING)
    wait_until(lambda: pod.agent.connected)
    assert pod.told == [], "it is the same store"


def test_a_store_made_anew_is_told_before_its_orders_and_gets_the_report(
    etcd: Member, pod_at: PodAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ebbtide.etcd.resume.RESTART_PROOF_S", 1.0)
    # A keep-alive would find the lease gone as well, if later.
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 600.0)
    pod = pod_at(etcd.url, etcd).start()
    for generation in range(1, 31):
        old = pod.order(generation)
    wait_until(lambda: pod.told[-1:] == [old])
    pod.told.clear()
    etcd.kill()
    etcd.wipe()
    etcd.start()
    # A store that remembers nothing counts from the beginning again, and so do its orders.
    new = pod.order(1)
    wait_until(lambda: pod.told == ["store restarted", new])
    wait_until(lambda: pod.stored is not None and pod.stored.lease)
    wait_until(lambda: pod.agent.connected)


# --- what is known of a pod


def test_a_report_appears_bound_to_a_lease(shared_etcd: Member, pod_at: PodAt) -> None:
    pod = pod_at(shared_etcd.url, shared_etcd)
    pod.tasks = 3
    stored = pod.start().stored
    assert stored is not None
    assert stored.lease
    assert Report.decode(stored.value) == Report(state=PodState.SERVING, sequence=1, boot_id="boot", active=3)
    pod.turn(PodState.DRAINING)
    wait_until(lambda: pod.report is not None and pod.report.state is PodState.DRAINING)
    changed = pod.stored
    assert changed is not None
    assert changed.lease == stored.lease


def test_a_quiet_pod_writes_nothing_but_keep_alives(
    etcd: Member, pod_at: PodAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOAD_PERIOD_S", 0.05)
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.1)
    pod = pod_at(etcd.url, etcd).start()
    pod.tasks = 5
    wait_until(lambda: pod.client.writes.count("keep alive") >= 10)
    assert pod.client.writes[:2] == ["grant", "put"]
    assert set(pod.client.writes[2:]) == {"keep alive"}
    stored = pod.stored
    assert stored is not None
    assert pod.store.range("/").revision == stored.mod_revision, "nobody wrote after the report"


def test_a_phase_is_answered_with_its_revision(shared_etcd: Member, pod_at: PodAt) -> None:
    pod = pod_at(shared_etcd.url, shared_etcd)
    before = pod.publish(RolloutPhase.STABLE)
    pod.start()
    wait_until(lambda: pod.report is not None and pod.report.phase_revision == before)
    pod.tasks = 4
    after = pod.publish(RolloutPhase.ROLLING_OUT)
    wait_until(lambda: pod.report is not None and pod.report.phase_revision == after)
    answer = pod.report
    assert answer is not None
    assert answer.active == 4


def test_a_changed_load_is_told_during_a_rollout_and_not_after(
    shared_etcd: Member, pod_at: PodAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOAD_PERIOD_S", 0.05)
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.1)
    pod = pod_at(shared_etcd.url, shared_etcd).start()
    pod.publish(RolloutPhase.ROLLING_OUT)
    for tasks in (3, 2, 0):
        pod.tasks = tasks
        wait_until(lambda: pod.report is not None and pod.report.active == pod.tasks)
    over = pod.publish(RolloutPhase.STABLE)
    wait_until(lambda: pod.report is not None and pod.report.phase_revision == over)
    pod.tasks = 7
    kept = pod.client.writes.count("keep alive")
    wait_until(lambda: pod.client.writes.count("keep alive") >= kept + 5)
    assert pod.report is not None
    assert pod.report.active == 0


def test_a_report_is_there_again_after_its_lease_ran_out_behind_a_cut(
    etcd: Member, proxy: Proxy, pod_at: PodAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_S", 2)
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.2)
    pod = pod_at(proxy.url, etcd).start()
    lost = pod.stored
    assert lost is not None
    proxy.refusing = True
    proxy.cut()
    wait_until(lambda: pod.stored is None)
    proxy.refusing = False
    wait_until(lambda: pod.stored is not None)
    found = pod.stored
    assert found is not None
    assert found.lease not in {0, lost.lease}


def test_a_lease_that_was_taken_away_is_replaced_at_the_next_keep_alive(
    shared_etcd: Member, pod_at: PodAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process stood still for longer than its lease: no connection fails."""
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.2)
    pod = pod_at(shared_etcd.url, shared_etcd).start()
    lost = pod.stored
    assert lost is not None
    pod.store.revoke(lost.lease)
    wait_until(lambda: pod.stored is not None and pod.stored.lease not in {0, lost.lease})


# --- the end


def test_the_final_report_outlives_the_lease(
    shared_etcd: Member, pod_at: PodAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_S", 2)
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.2)
    pod = pod_at(shared_etcd.url, shared_etcd).start()
    alive = pod.stored
    assert alive is not None
    witness = f"/{pod.namespace}/witness"
    pod.store.put(witness, b"", lease=alive.lease)
    pod.state = PodState.EXITING
    assert pod.agent.finish(10)
    wait_until(lambda: pod.store.get(witness) is None)
    final = pod.stored
    assert final is not None
    assert final.lease == 0
    assert Report.decode(final.value).state is PodState.EXITING


def test_an_agent_that_ends_before_it_was_heard_takes_the_time_for_its_final_report(
    etcd: Member, pod_at: PodAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FINISH_S", 20.0)
    pod = pod_at(etcd.url, etcd, timeout_s=10.0)
    etcd.freeze()
    thaw = threading.Timer(3 * module.AWAY_S, etcd.thaw)
    thaw.start()
    pod.agent.start()
    pod.state = PodState.EXITING
    assert pod.agent.finish(10)
    thaw.join()
    assert pod.report is not None
    assert pod.report.state is PodState.EXITING


@pytest.mark.parametrize("harm", [Member.kill, Member.freeze], ids=["dead", "frozen"])
def test_a_final_report_that_cannot_be_written_is_given_up_in_time(
    etcd: Member, pod_at: PodAt, harm: Callable[[Member], None]
) -> None:
    pod = pod_at(etcd.url, etcd, timeout_s=10.0).start()
    harm(etcd)
    asked_at = time.monotonic()
    assert not pod.agent.finish(0.5)
    took_s = time.monotonic() - asked_at
    etcd.kill()
    assert took_s < 5  # not the limit of the call that hangs, which is 10 s
    # What died is known to be away; what froze may answer yet.
    assert harm is Member.kill or took_s >= 0.5
