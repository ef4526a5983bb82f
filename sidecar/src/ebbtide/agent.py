"""Between the store and the machine: orders in, reports out. Two daemon threads; a shutdown waits for neither.

One thread watches the pod's order and its workload's phase. The other keeps the lease alive and writes the report: on
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

from ebbtide.etcd import Batch, Changed, EtcdClient, EtcdError, KeyValue, LeaseNotFound, Resync, Watch
from ebbtide.protocol import Keys, Order, Phase, RecordError, Report, RolloutPhase
from ebbtide.settings import Settings

logger = logging.getLogger("ebbtide")

LEASE_S = 30
KEEP_ALIVE_S = 10.0
LOAD_PERIOD_S = 1.0
"""Least time between two reports that differ in the number of tasks alone."""
RETRY_LEAST_S = 0.1
RETRY_MOST_S = 5.0


class Agent:
    """Keep one process and the operator informed of each other.

    Args:
        settings: Who we are and whom to talk to; `has_store` must hold.
        make_report: Called with the sequence number and the phase revision that is answered; returns the report of now.
        on_order: Called with each order that the store holds, also repeatedly; the machine ignores what it has obeyed.
        on_store_restarted: Called where the store lost its memory.
        client: For tests; None: a client of `settings.endpoints`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        make_report: Callable[[int, int], Report],
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
        self._on_order = on_order
        self._on_store_restarted = on_store_restarted
        self._stop = threading.Event()
        self._wake = threading.Condition()
        self._edge = True
        self._load_changed = False
        self._finishing = False
        self._phase_revision = 0
        self._stable = True
        self._sequence = 0
        self._lease = 0
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
        for thread in self._threads:
            thread.start()

    def edge(self) -> None:
        """Say that the state changed, or that an order was obeyed: report it now. Cheap, from any thread."""
        with self._wake:
            self._edge = True
            self._wake.notify_all()

    def load(self) -> None:
        """Say that the number of tasks changed. Cheap, from any thread."""
        # Read without the lock: in a steady state, which is nearly always, a task must not pay for one.
        if self._stable or self._load_changed:
            return
        with self._wake:
            self._load_changed = True
            self._wake.notify_all()

    def finish(self, timeout_s: float) -> bool:
        """Write the final report, which outlives the lease, and stop; False where that took longer than `timeout_s`."""
        with self._wake:
            self._finishing = True
            self._wake.notify_all()
        done = self._finished.wait(timeout_s)
        self._stop.set()
        self._client.close()
        return done

    def _follow(self) -> None:
        keys = [self._order_key] if self._phase_key is None else [self._order_key, self._phase_key]
        self._watch = self._client.watch(keys, stop=self._stop)
        try:
            for batch in self._watch:
                self._take(batch)
        except EtcdError as error:
            if not self._stop.is_set():
                logger.error("ebbtide: orders do not reach this process any more: %s", error)  # noqa: TRY400

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
        renewed_at = 0.0
        while not self._stop.is_set():
            kind = self._next(written_at, renewed_at)
            try:
                if kind == "renew":
                    self._renew()
                    renewed_at = time.monotonic()
                else:
                    self._put(final=kind == "final")
                    written_at = renewed_at = time.monotonic()
                failures = 0
            except EtcdError as error:
                failures += 1
                if failures == 1:
                    logger.warning("ebbtide: the operator does not hear this process: %s", error)
                with self._wake:
                    self._edge = True
                longest_s = min(RETRY_LEAST_S * 2**failures, RETRY_MOST_S)
                self._stop.wait(random.uniform(longest_s / 2, longest_s))  # noqa: S311 (jitter)
                continue
            if kind == "final":
                self._finished.set()
                return

    def _next(self, written_at: float, renewed_at: float) -> str:
        """Wait for something to write; return `report`, `final` or `renew`."""
        # Jitter, so that a thousand pods that started together do not renew together.
        renew_at = renewed_at + KEEP_ALIVE_S * random.uniform(0.8, 1.0)  # noqa: S311
        with self._wake:
            while True:
                now = time.monotonic()
                if self._finishing:
                    return "final"
                if self._edge:
                    break
                load_at = written_at + LOAD_PERIOD_S
                if self._load_changed and now >= load_at:
                    break
                if now >= renew_at:
                    return "renew"
                until = min(renew_at, load_at) if self._load_changed else renew_at
                self._wake.wait(until - now)
            # Cleared before the report is made: what happens after that is news again.
            self._edge = self._load_changed = False
            return "report"

    def _put(self, *, final: bool) -> None:
        self._sequence += 1
        with self._wake:
            phase_revision = self._phase_revision
        report = self._make_report(self._sequence, phase_revision).encode()
        if final:
            self._client.put(self._report_key, report)
            return
        if not self._lease:
            self._lease = self._client.grant(LEASE_S)
        try:
            self._client.put(self._report_key, report, lease=self._lease)
        except LeaseNotFound:
            self._lease = self._client.grant(LEASE_S)
            self._client.put(self._report_key, report, lease=self._lease)

    def _renew(self) -> None:
        if self._lease and self._client.keep_alive(self._lease):
            return
        # The lease ended, and the report with it.
        self._lease = 0
        self._put(final=False)


def connect(settings: Settings) -> EtcdClient:
    """Return a client for the endpoints in the settings."""
    tls = ssl.create_default_context(cadata=settings.ca) if settings.ca else None
    path = Path(settings.token_file) if settings.token_file else None

    def token() -> str:
        assert path is not None
        try:
            return path.read_text().strip()
        except OSError:
            # Refused for the lack of it, and asked again: the kubelet may be a moment late.
            return ""

    return EtcdClient(settings.endpoints, tls=tls, token=None if path is None else token, timeout_s=5.0)
