"""Between the store and the machine: orders in, reports out. Two daemon threads; a shutdown waits for neither.

One thread watches the pod's order and its workload's phase, and beats over the same connection, which keeps the lease
alive. The other writes the report, and renews the lease itself where nobody takes beats: on
edges, in answer to a new phase, and while that phase is not Stable whenever the number of tasks changed, at most once
per second. A quiet pod writes nothing. Only the latest report matters: what came up while one was being written goes
into the next.
"""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ebbtide.etcd import (
    Batch,
    Changed,
    Closed,
    EtcdClient,
    EtcdError,
    Heartbeat,
    KeyValue,
    LeaseNotFound,
    Resync,
    Watch,
)
from ebbtide.protocol import Keys, Order, Phase, PodState, RecordError, Report, RolloutPhase
from ebbtide.settings import Settings

logger = logging.getLogger("ebbtide")

LEASE_S = 90
KEEP_ALIVE_S = 30.0
"""Nothing is decided by a pod's silence before minutes have passed: docs/decisions/0017."""
LOAD_PERIOD_S = 1.0
"""Least time between two reports that differ in the number of tasks alone."""
RETRY_LEAST_S = 0.1
RETRY_MOST_S = 5.0
FINISH_S = 0.5
"""Longest that the end of a process waits for its final report."""
AWAY_S = 0.1
"""The same where nobody hears this process: one try, and no drain takes longer for a store that is away."""


class Agent:
    """Keep one process and the operator informed of each other.

    Args:
        settings: Who we are and whom to talk to; `has_store` must hold.
        make_report: Called with the sequence number and the phase revision that is answered; returns the report of now.
        count: Returns the number of tasks in flight.
        on_order: Called with each order that the store holds, also repeatedly; the machine ignores what it has obeyed.
        on_store_restarted: Called where the store lost its memory.
        client: For tests; None: a client of `settings.endpoints`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        make_report: Callable[[int, int], Report],
        count: Callable[[], int],
        on_order: Callable[[Order], None],
        on_store_restarted: Callable[[], None] = lambda: None,
        client: EtcdClient | None = None,
    ) -> None:
        keys = Keys(settings.prefix)
        self._order_key = keys.order(settings.pod_namespace, settings.pod_uid)
        self._report_key = keys.report(settings.pod_namespace, settings.pod_uid)
        kind, _, name = settings.workload.partition("/")
        self._phase_key = keys.phase(settings.pod_namespace, kind, name) if name else None
        self._client = client or connect(settings)
        self._make_report = make_report
        self._count = count
        self._on_order = on_order
        self._on_store_restarted = on_store_restarted
        self._stop = threading.Event()
        self._wake = threading.Condition()
        self._edge = True
        self._reported = 0
        self._ending = ""
        self._unheard = False
        self._started_at = 0.0
        self._phase_revision = 0
        self._stable = True
        self._sequence = 0
        self._heartbeat = Heartbeat(KEEP_ALIVE_S, on_ended=self.edge)
        self._watch: Watch | None = None
        self._finished = threading.Event()
        self._threads = (
            threading.Thread(target=self._follow, name="ebbtide-watch", daemon=True),
            threading.Thread(target=self._write, name="ebbtide-report", daemon=True),
        )

    @property
    def connected(self) -> bool:
        """True while orders reach this process."""
        return self._watch is not None and self._watch.connected

    def start(self) -> None:
        """Start both threads."""
        self._started_at = time.monotonic()
        for thread in self._threads:
            thread.start()

    def edge(self) -> None:
        """Say that the state changed, or that an order was obeyed: report it now. Cheap, from any thread."""
        with self._wake:
            self._edge = True
            self._wake.notify_all()

    def finish(self, timeout_s: float = FINISH_S) -> bool:
        """Write the final report, which outlives the lease, and stop.

        Returns:
            False where that took longer than `timeout_s` seconds; where nobody hears this process, 0.1 s at most.
        """
        # Who has only just begun to speak, as one does whose leader left just before, may be heard yet.
        begins = time.monotonic() < self._started_at + FINISH_S
        heard = (self.connected or begins) and not self._unheard
        return self._end("final", timeout_s if heard else min(timeout_s, AWAY_S))

    def retire(self, timeout_s: float) -> bool:
        """Stop without a final report: another process of the pod writes the next one.

        Returns:
            False where a report was still under way after `timeout_s`: it may come after the next one.
        """
        return self._end("retire", timeout_s)

    def _end(self, how: str, timeout_s: float) -> bool:
        with self._wake:
            self._ending = how
            self._wake.notify_all()
        done = self._finished.wait(timeout_s)
        self._stop.set()
        self._client.close()
        return done

    def _follow(self) -> None:
        keys = [self._order_key] if self._phase_key is None else [self._order_key, self._phase_key]
        while not self._stop.is_set():
            self._watch = self._client.watch(keys, stop=self._stop, heartbeat=self._heartbeat)
            try:
                for batch in self._watch:
                    self._take(batch)
            except Closed:
                return
            except Exception:
                # A defect of ours must not cut the process off from its orders.
                logger.exception("ebbtide: following the orders failed, starting anew")
                self._stop.wait(RETRY_MOST_S)

    def _take(self, batch: Batch) -> None:
        for change in batch.changes:
            match change:
                case Changed(key_value):
                    self._see(key_value)
                case Resync(key_values, _, restarted):
                    if restarted:
                        self._on_store_restarted()
                    for key_value in key_values:
                        self._see(key_value)
                    if restarted:
                        self.edge()
                case _:
                    # An order that was deleted means that nothing is wanted any more than was: it is no order to serve.
                    pass

    def _see(self, key_value: KeyValue) -> None:
        try:
            if key_value.key == self._order_key:
                self._on_order(Order.decode(key_value.value))
            elif key_value.key == self._phase_key:
                phase = Phase.decode(key_value.value)
                with self._wake:
                    self._phase_revision = key_value.mod_revision
                    self._stable = phase.phase is RolloutPhase.STABLE
                # The phase asks every pod for its load: the operator chooses the idlest by the answers.
                self.edge()
        except RecordError as error:
            logger.warning("ebbtide: ignored what %s holds: %s", key_value.key, error)

    def _write(self) -> None:
        failures = 0
        written_at = 0.0
        while not self._stop.is_set():
            kind = self._next(written_at)
            if kind == "retire":
                self._finished.set()
                return
            try:
                if kind == "renew":
                    self._renew()
                else:
                    self._put(final=kind == "final")
                    written_at = time.monotonic()
            except Exception as error:  # noqa: BLE001 (a defect of ours must not silence the process either)
                failures += 1
                self._unheard = True
                self._pause(failures, error)
                continue
            if failures:
                logger.info("ebbtide: the operator hears this process again")
            failures = 0
            self._unheard = False
            if kind == "final":
                self._finished.set()
                return

    def _pause(self, failures: int, error: Exception) -> None:
        if failures == 1:
            known = isinstance(error, EtcdError)
            logger.warning("ebbtide: the operator does not hear this process: %s", error, exc_info=not known)
        longest_s = min(RETRY_LEAST_S * 2**failures, RETRY_MOST_S)
        pause_s = random.uniform(longest_s / 2, longest_s)  # noqa: S311 (jitter)
        with self._wake:
            self._edge = True
            if not self._ending:
                # The final report is worth a try of its own.
                self._wake.wait_for(lambda: self._ending, pause_s)
                return
        self._stop.wait(RETRY_LEAST_S)

    def _next(self, written_at: float) -> str:
        """Wait for something to write; return `report`, `final`, `retire` or `renew`."""
        looked_at = written_at
        with self._wake:
            while True:
                now = time.monotonic()
                if self._ending:
                    return self._ending
                if self._edge:
                    break
                # In a steady state the number of tasks is nobody's concern. Otherwise it is looked at now and then:
                # being told of each change would cost every task.
                if not self._stable and now >= looked_at + LOAD_PERIOD_S:
                    if self._count() != self._reported:
                        break
                    looked_at = now
                renew_at = self._heartbeat.request_at
                if now >= renew_at:
                    return "renew"
                until = renew_at if self._stable else min(renew_at, looked_at + LOAD_PERIOD_S)
                self._wake.wait(min(until - now, threading.TIMEOUT_MAX))
            # Cleared before the report is made: what happens after that is news again.
            self._edge = False
            return "report"

    def _put(self, *, final: bool) -> None:
        self._sequence += 1
        with self._wake:
            phase_revision = self._phase_revision
        report = self._make_report(self._sequence, phase_revision)
        self._reported = report.active
        if final or report.state is PodState.EXITING:
            # Without a lease, so that it outlives the process.
            self._client.put(self._report_key, report.encode())
            return
        lease = self._heartbeat.lease or self._grant()
        try:
            self._client.put(self._report_key, report.encode(), lease=lease)
        except LeaseNotFound:
            self._client.put(self._report_key, report.encode(), lease=self._grant())

    def _grant(self) -> int:
        lease = self._client.grant(LEASE_S)
        self._heartbeat.hold(lease)
        return lease

    def _renew(self) -> None:
        lease = self._heartbeat.lease
        if lease and self._client.keep_alive(lease):
            self._heartbeat.hold(lease)
            return
        # The lease ended, and the report with it.
        self._heartbeat.hold(0)
        self._put(final=False)


def connect(settings: Settings) -> EtcdClient:
    """Return a client for the endpoints in the settings."""
    # PEM is ASCII; a comment beside it, which `ssl` would refuse, need not be.
    authorities = settings.ca.encode("ascii", "replace").decode("ascii")
    tls = ssl.create_default_context(cadata=authorities) if authorities else None
    path = Path(settings.token_file) if settings.token_file else None

    def token() -> str:
        assert path is not None
        try:
            return path.read_text().strip()
        except OSError:
            # Refused for the lack of it, and asked again: the kubelet may be a moment late.
            return ""

    return EtcdClient(settings.endpoints, tls=tls, token=None if path is None else token, timeout_s=5.0)
