"""The composition root: the only module that constructs adapters and starts tasks.

Every replica runs all of it but the planner, which runs where the Lease is held. A task that fails ends the process:
the kubelet starts it again, and it goes on from what it finds in the cluster and in the store.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time

import aiohttp
import kopf

from ebbtide_operator import handlers
from ebbtide_operator.apply import Applier
from ebbtide_operator.cluster.api import Api, ApiError, connection
from ebbtide_operator.cluster.certificates import CertificateError, Certificates, Names
from ebbtide_operator.cluster.client import KubernetesCluster, KubernetesSecrets
from ebbtide_operator.cluster.informer import PodInformer
from ebbtide_operator.cluster.leader import KubernetesLease, LeaderElection, Timing
from ebbtide_operator.cluster.resync import Resync
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core.floor import FloorEndpoint
from ebbtide_operator.core.model import Mode, PodView, WorkloadKey
from ebbtide_operator.core.verdict import HoldContext
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import Conflict, Deposed, StoreUnavailable
from ebbtide_operator.queue import WorkQueue
from ebbtide_operator.reconcile import Reconciler
from ebbtide_operator.serve.admission import Admission
from ebbtide_operator.serve.app import Server
from ebbtide_operator.serve.relay import Relay
from ebbtide_operator.settings import Settings
from ebbtide_operator.store.adapters import make_store
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.survey import Survey

logger = logging.getLogger(__name__)

CERTIFICATE_CHECK_S = 60.0
CERTIFICATE_RETRY_S = 0.5
SWEEP_S = 300.0
STUCK_S = 120.0
SPACING_S = 0.05
"""A rolling update of 200 pods wakes its workload some hundred times a second."""
STOP_S = 8.0
"""How long the end may take; then what is left is cut off, well inside the pod's grace period."""
MOST_REQUESTS = 256
"""Notes to the leader that a follower has under way; more are dropped: the leader sees the ReplicaSet by itself."""

PASSING = (ApiError, aiohttp.ClientError, TimeoutError, OSError, Conflict, StoreUnavailable, Deposed)
"""What a reconciliation may fail with in an imperfect world: tried again, without a stack trace."""


class App:
    """One replica of the operator."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = metrics = Metrics()
        self._queue: WorkQueue[WorkloadKey] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._api = Api(connection(), on_write=lambda verb, kind: metrics.api_writes.labels(verb, kind).inc())
        self._workloads = Workloads(settings.defaults, self._wake)
        self._resync = Resync(self._api, self._workloads)
        self._pods = PodInformer(self._api, self._pod_changed, lambda: self._heard("pods"))
        self._cluster = KubernetesCluster(self._api, self._pods.observe)
        self._certificates = Certificates(
            KubernetesSecrets(self._api, settings.namespace),
            Names(settings.fullname, settings.namespace, with_etcd=settings.etcd_tls_own),
            on_expiry=lambda name, at: metrics.certificate_expiration.labels(name).set(at),
        )
        self._certified = asyncio.Event()
        self._trusted = asyncio.Event()
        self._stop = asyncio.Event()
        self._election = LeaderElection(
            KubernetesLease(self._api, settings.namespace, settings.lease),
            settings.identity,
            Timing(settings.lease_duration_s),
        )
        self._store = make_store(settings, self._certificates)
        self._state = MirroredDrainState(self._store, self._record_changed, prefix=settings.prefix)
        self._applier = Applier(
            self._cluster,
            self._state,
            metrics,
            time.time,
            may_delete=lambda: settings.delete_released and self._election.holds,
        )
        self._reconciler = Reconciler(
            self._workloads,
            self._pods,
            self._state,
            self._cluster,
            self._applier,
            metrics,
            time.time,
            wake=self._wake,
            failed=self._reconcile_failed,
        )
        self._admission = Admission(
            self._workloads, self._cluster, self._endpoint, self._hold_context, self._held, metrics
        )
        self._relay = Relay(self._state, self._store, self._cluster.authenticate, self._workload_of, metrics)
        self._server = Server(metrics, self._missing, self._stuck)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, or until a task fails."""
        stop = self._stop
        _stop_on_signals(stop)
        await self._server.start_plain(self._settings.http_port)
        stopping = asyncio.create_task(stop.wait(), name="stop")
        running = [
            asyncio.create_task(work(), name=name)
            for name, work in {
                "certificates": self._keep_certificates,
                "workloads": self._resync.run,
                "handlers": self._handle,
                "pods": self._pods.run,
                "store": self._follow_store,
                "secure port": self._serve,
                "pulse": self._relay.run,
                "election": self._elect,
                "gauges": self._show_health,
                "store status": Survey(self._store, self._metrics.show_store).run,
            }.items()
        ]
        try:
            await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                if task.done() and not stop.is_set():
                    logger.critical("operator.task_ended", extra={"task": task.get_name()})
                    task.result()
        finally:
            logger.info("operator.stopping")
            stopping.cancel()
            await self._end(running)

    async def _end(self, running: list[asyncio.Task[None]]) -> None:
        # Pods go to another replica first; the Lease is given back by the election's own task as it is cancelled.
        self._relay.close()
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=STOP_S)
        await self._server.close()
        await self._store.close()
        await self._api.close()
        self._certificates.close()

    # --- tasks

    async def _keep_certificates(self) -> None:
        while True:
            try:
                if self._election.holds:
                    await self._certificates.ensure()
                settled = await self._certificates.load()
                if settled:
                    self._certified.set()
                    bundle = self._certificates.ca_bundle
                    settled = await self._cluster.trusts(self._settings.fullname, bundle, mend=self._election.holds)
                    if settled:
                        self._trusted.set()
            except (*PASSING, CertificateError) as error:
                logger.warning("certificates.retry", extra={"error": str(error) or repr(error)})
                settled = False
            await asyncio.sleep(CERTIFICATE_CHECK_S if settled else CERTIFICATE_RETRY_S)

    async def _handle(self) -> None:
        """Run kopf beside us: its own runner would take every task of the loop with it as it ends."""
        tasks = await kopf.spawn_tasks(
            registry=handlers.build_registry(self._workloads, self._drain_deleted),
            settings=handlers.build_settings(),
            standalone=True,
            clusterwide=True,
            # kopf would ask for the name of our user, and a number in a container has none.
            identity=self._settings.identity,  # type: ignore[arg-type]  # kopf does not export the type
        )
        # kopf takes the signals as it starts: they are ours again.
        _stop_on_signals(self._stop)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_store(self) -> None:
        if self._settings.etcd_tls_own:
            await self._certified.wait()
        await self._state.run()

    async def _serve(self) -> None:
        await self._certified.wait()
        routes = [*self._admission.routes(), *self._relay.routes()]
        await self._server.start_secure(routes, self._certificates.serving, self._settings.https_port)
        await asyncio.Event().wait()

    async def _elect(self) -> None:
        await self._election.run(self._lead)

    async def _lead(self) -> None:
        """Plan for as long as this replica is elected."""
        self._metrics.leader.set(1)
        try:
            await self._resync.synced.wait()
            await self._pods.synced.wait()
            # The certificates may be missing because nobody led: the task that makes them looks every half second.
            await self._certified.wait()
            await self._state.synced()
            self._reconciler.begin()
            self._queue = WorkQueue(self._reconcile, spacing_s=SPACING_S, on_error=self._reconcile_failed)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._queue.run())
                tasks.create_task(self._sweep())
                tasks.create_task(
                    self._state.hold_leadership(
                        self._settings.identity, may_lead=lambda: self._election.holds, began=self._begin_epoch
                    )
                )
        finally:
            self._queue = None
            self._reconciler.begin()
            self._metrics.leader.set(0)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self._state.sweep(
                    lambda _namespace, uid: self._pods.get(uid) is not None,
                    lambda key: self._workloads.get(key) is not None,
                )
            except PASSING as error:
                logger.warning("sweep.failed", extra={"error": str(error) or repr(error)})

    async def _show_health(self) -> None:
        healthy = True
        while True:
            if self._state.healthy is not healthy:
                # Every Drain has a condition that says so, and nothing else wakes a workload that rests.
                healthy = self._state.healthy
                self._wake_all()
            self._metrics.store_healthy.set(healthy)
            self._metrics.epoch.set(self._state.epoch)
            self._metrics.queue_depth.set(self._queue.depth if self._queue is not None else 0)
            await asyncio.sleep(1)

    # --- planning

    async def _reconcile(self, key: WorkloadKey) -> float | None:
        if not self._election.holds:
            # Also right after this process was stopped and continued: another may lead by now.
            raise Deposed("the Lease ran out")
        return await self._reconciler.reconcile(key)

    def _reconcile_failed(self, key: WorkloadKey, error: Exception) -> None:
        self._metrics.reconcile_errors.labels(type(error).__name__).inc()
        extra = {"workload": str(key), "error": str(error) or repr(error)}
        if isinstance(error, PASSING):
            logger.warning("reconcile.retry", extra=extra)
        else:
            logger.error("reconcile.failed", extra=extra, exc_info=error)

    def _begin_epoch(self, epoch: int) -> None:
        logger.info("planner.began", extra={"epoch": epoch})
        for owner in self._pods.owners():
            workload = self._workloads.owning(owner)
            if workload is not None:
                # Also one that opted out while nobody looked: its pods still carry the label.
                self._workloads.concern(workload.key)
        self._wake_all()

    # --- what wakes the planner

    def _wake(self, key: WorkloadKey, after_s: float = 0.0) -> None:
        if self._queue is not None:
            self._queue.wake(key, after_s)

    def _wake_all(self) -> None:
        # Also those that are gone, and left pods with orders.
        for key in {*self._workloads.keys(), *self._state.ordered()}:
            self._wake(key)

    def _pod_changed(self, pod: PodView) -> None:
        if pod.terminating or self._pods.get(pod.uid) is None:
            self._applier.note_terminating(pod.uid)
        workload = self._workloads.owning(pod.owner_uid)
        if workload is not None:
            self._workloads.concern(workload.key)
            self._wake(workload.key)
        else:
            self._record_changed(pod.namespace, pod.uid, None)

    def _record_changed(self, namespace: str, uid: str | None, workload: str | None) -> None:
        if uid is not None:
            key = self._workload_of(namespace, uid)
            if key is not None:
                self._wake(key)
                return
            # The pod is gone; its order says whose it was.
            order = self._state.order(namespace, uid)
            workload = None if order is None else order.workload
        kind, _, name = (workload or "").partition("/")
        if name:
            self._wake(WorkloadKey(namespace, kind, name))

    def _drain_deleted(self, namespace: str, name: str) -> None:
        key = self._reconciler.forget_status(namespace, name)
        if key is not None:
            self._wake(key)

    def _held(self, pod: PodView, user: str) -> None:
        """A controller was refused a pod: make sure that the planner knows."""
        workload = self._workloads.owning(pod.owner_uid)
        if workload is not None:
            self._wake(workload.key)
        if pod.draining_since is None and len(self._tasks) < MOST_REQUESTS:
            task = asyncio.create_task(self._post_request(pod, user))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _post_request(self, pod: PodView, user: str) -> None:
        try:
            await self._state.post_request(pod.namespace, pod.uid, user)
        except StoreUnavailable as error:
            logger.debug("request.not_posted", extra={"error": str(error)})

    # --- what the webhooks and the relay ask

    def _endpoint(self) -> FloorEndpoint:
        return FloorEndpoint(
            endpoints=self._settings.pod_endpoints,
            ca_pem=self._certificates.ca_bundle.decode(),
            prefix=self._settings.prefix,
            admin_token=secrets.token_urlsafe(24),
        )

    def _hold_context(self, pod: PodView) -> HoldContext:
        workload = self._workloads.owning(pod.owner_uid)
        report = self._state.report(pod.namespace, pod.uid)
        lost_since = self._state.unhealthy_since
        draining = 0
        # Only the refusal of a pod that waits names the number: most answers need not count.
        if workload is not None and pod.draining_since is None:
            own = (one for view in workload.sets for one in self._pods.of(view.uid))
            draining = sum(one.draining_since is not None and not one.terminating for one in own)
        return HoldContext(
            leader_silent_s=self._election.age_s,
            store_lost_s=0.0 if lost_since is None else max(0.0, time.time() - lost_since),
            fail_open_after_s=self._settings.fail_open_after_s,
            leader_limit_s=self._settings.lease_duration_s + self._settings.fail_open_after_s,
            managed=None if workload is None else workload.policy.mode is Mode.MANAGED,
            workload="" if workload is None else f"{workload.key.kind}/{workload.key.name}",
            draining=draining,
            tasks=report.report.active if report is not None and report.live else None,
            eta_s=report.report.eta_s if report is not None and report.live else None,
        )

    def _workload_of(self, _namespace: str, uid: str) -> WorkloadKey | None:
        pod = self._pods.get(uid)
        workload = None if pod is None else self._workloads.owning(pod.owner_uid)
        return None if workload is None else workload.key

    def _heard(self, resource: str) -> None:
        self._metrics.watch_last_event.labels(resource).set_to_current_time()

    def _stuck(self) -> list[str]:
        # Every wait of a pass has a limit of its own; where one is missed, only a restart helps.
        if self._queue is not None and self._queue.longest_s > STUCK_S:
            return [f"a workload is being worked on for {self._queue.longest_s:.0f} s"]
        return []

    def _missing(self) -> list[str]:
        needs = {
            "certificates": self._certified.is_set(),
            # Until then the API server cannot call us, and pods that are made go without the floor.
            "authority in the webhook configurations": self._trusted.is_set(),
            "list of workloads": self._resync.synced.is_set(),
            "list of pods": self._pods.synced.is_set(),
        }
        return [f"waits for: {name}" for name, there in needs.items() if not there]


async def main(settings: Settings) -> None:
    """Run one replica until SIGTERM or SIGINT."""
    await App(settings).run()


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
