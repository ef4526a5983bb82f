"""etcd's JSON API for pods: each reads its order and its workload's phase, and writes its report. Nothing else.

Watches are served from the mirror, so that one watch on etcd feeds every pod, and they stay open while etcd is away.
What changes twice between two lines is told once: a pod needs what is, not what was.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn, TypeVar

from aiohttp import web

from ebbtide.etcd import wire
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.wire import WatchTarget
from ebbtide.protocol import RecordError, Report
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import LeaseEnded, PodIdentity, Put, Store, StoreUnavailable
from ebbtide_operator.serve import relay_wire
from ebbtide_operator.serve.bodies import Beats, read_opening, read_whole
from ebbtide_operator.serve.identity import IdentityCache
from ebbtide_operator.serve.limits import TokenBuckets
from ebbtide_operator.serve.pulse import LOOK_S, Feeling, Pulse
from ebbtide_operator.serve.relay_wire import TTL_S, Denial, forbidden
from ebbtide_operator.serve.reviews import ReviewLimits
from ebbtide_operator.serve.watcher import Watcher
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.mirror import Subscription
from ebbtide_operator.store.records import Addresses, Kind

MOST_REPORT_BYTES = 16 * 1024
CATCH_UP_S = 2.0
"""How long the mirror may take to reach what the pod saw through another replica."""
WATCH_S = 1800.0
"""Mean life of a watch: then the pod proves again who it is, and may land on another replica."""
WATCHES_PER_POD = 4
REQUESTS_PER_S, REQUESTS_AT_ONCE = 5.0, 30.0
LEASE_SLOTS = 16
"""Leases that one pod may have at a time."""
TAKEN = "1"
"""Of the header that says that beats are taken."""

Body = TypeVar("Body")

logger = logging.getLogger(__name__)


class Relay:
    """The handlers.

    Args:
        state: Where watches and reads come from.
        store: Where reports and leases go.
        authenticate: Returns the pod that a token speaks for (TokenReview); raises where that cannot be found out.
        workload_of: Returns the workload of a pod (namespace, UID), as far as it is known.
        metrics: Counts open watches.
        clock: Monotonic seconds.
        look_s: Seconds between two looks at all open watches.
    """

    def __init__(
        self,
        state: MirroredDrainState,
        store: Store,
        authenticate: Callable[[str], Awaitable[PodIdentity | None]],
        workload_of: Callable[[str, str], WorkloadKey | None],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        look_s: float = LOOK_S,
    ) -> None:
        self._state = state
        self._mirror = state.mirror
        self._store = store
        self._identities = IdentityCache(authenticate, clock)
        self._workload_of = workload_of
        self._metrics = metrics
        self._clock = clock
        self._keys = state.keys
        self._addresses = Addresses(state.keys)
        self._requests: TokenBuckets[str] = TokenBuckets(REQUESTS_PER_S, REQUESTS_AT_ONCE, clock)
        self._reviews = ReviewLimits(lambda namespace, uid: workload_of(namespace, uid) is not None, clock)
        self._watches: Counter[str] = Counter()
        self._subscriptions: set[Subscription] = set()
        self._closing = False
        self._pulse = Pulse(lambda: self._store, self._admit_beat, metrics, look_s)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(wire.RANGE, self._guarded(self._range, read_whole)),
            web.post(wire.PUT, self._guarded(self._put, read_whole)),
            web.post(wire.WATCH, self._guarded(self._watch, read_opening)),
            web.post(wire.GRANT, self._guarded(self._grant, read_whole)),
            web.post(wire.KEEP_ALIVE, self._guarded(self._keep_alive, read_whole)),
            web.route("*", "/v3/{call:.*}", self._guarded(self._refuse, read_whole)),
        ]

    def close(self) -> None:
        """End every watch, so that pods go to another replica at once."""
        self._closing = True
        for subscription in self._subscriptions:
            subscription.wake()

    async def run(self) -> NoReturn:
        """Feel the pulse of open watches until cancelled; without it quiet ones are not told anything."""
        await self._pulse.run()

    # --- what every request passes

    def _guarded(
        self,
        handler: Callable[[web.Request, PodIdentity, Body], Awaitable[web.StreamResponse]],
        read: Callable[[web.Request], Awaitable[Body]],
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                pod = await self._admit(request)
                return await handler(request, pod, await read(request))
            except Denial as denial:
                return _answer(denial)
            except WireError as error:
                return _answer(Denial(400, wire.INVALID_ARGUMENT, str(error)))
            except LeaseEnded:
                return _answer(Denial(404, wire.NOT_FOUND, "etcdserver: requested lease not found"))
            except StoreUnavailable as error:
                logger.debug("relay.store_away", extra={"error": str(error)})
                return _answer(Denial(503, wire.UNAVAILABLE, "the store is away"))

        async def handle(request: web.Request) -> web.StreamResponse:
            response = await answer(request)
            if not response.prepared:
                # So that its watch, which comes next, may stay open for beats.
                response.headers[wire.HEARTBEAT] = TAKEN
            return response

        return handle

    async def _admit(self, request: web.Request) -> PodIdentity:
        pod = await self._identify(request)
        self._check_pace(pod)
        return pod

    def _admit_beat(self, pod: PodIdentity, lease: int) -> None:
        self._check_pace(pod)
        self._check_lease(pod, lease)

    def _check_pace(self, pod: PodIdentity) -> None:
        if not self._requests.take(pod.uid):
            raise Denial(429, wire.RESOURCE_EXHAUSTED, "too many requests from this pod")

    async def _identify(self, request: web.Request) -> PodIdentity:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Denial(401, wire.UNAUTHENTICATED, "no bearer token")
        if not self._identities.remembers(token) and not self._reviews.admit(request.remote or "", token):
            raise Denial(429, wire.RESOURCE_EXHAUSTED, "too many new tokens")
        try:
            pod = await self._identities.identify(token)
        except Exception as error:
            # Whatever is wrong with Kubernetes, the pod can only come again later.
            logger.warning("relay.review_failed", extra={"error": str(error)})
            raise Denial(503, wire.UNAVAILABLE, "tokens cannot be checked at the moment") from error
        if pod is None:
            raise Denial(401, wire.UNAUTHENTICATED, "invalid auth token")
        return pod

    def _check_readable(self, pod: PodIdentity, key: str) -> None:
        if key == self._keys.order(pod.namespace, pod.uid):
            return
        address = self._addresses.read(key)
        if address is not None and address.kind is Kind.PHASE and address.namespace == pod.namespace:
            workload = self._workload_of(pod.namespace, pod.uid)
            if workload is None or workload == address.workload:
                return
        logger.info("relay.denied", extra={"namespace": pod.namespace, "pod": pod.name, "key": key[:200]})
        raise forbidden("a pod reads its own order and its workload's phase")

    def _check_healthy(self) -> None:
        if not self._state.healthy:
            raise StoreUnavailable("the store is away")

    # --- the calls

    async def _range(self, _request: web.Request, pod: PodIdentity, body: bytes) -> web.StreamResponse:
        key = relay_wire.decode_range(body)
        self._check_readable(pod, key)
        self._check_healthy()
        key_value = self._mirror.values.get(key)
        # Of what we wrote ourselves the mirror may know a little more than its revision says.
        revision = max(self._mirror.revision, key_value.mod_revision if key_value else 0)
        return _json(relay_wire.encode_range(key_value, revision, self._store.cluster))

    async def _put(self, _request: web.Request, pod: PodIdentity, body: bytes) -> web.StreamResponse:
        put = relay_wire.decode_put(body)
        if put.key != self._keys.report(pod.namespace, pod.uid):
            logger.info("relay.denied", extra={"namespace": pod.namespace, "pod": pod.name, "key": put.key[:200]})
            raise forbidden("a pod writes its own report")
        if len(put.value) > MOST_REPORT_BYTES:
            raise Denial(413, wire.RESOURCE_EXHAUSTED, f"a report has at most {MOST_REPORT_BYTES} bytes")
        if put.lease:
            self._check_lease(pod, put.lease)
        try:
            Report.decode(put.value)
        except (RecordError, RecursionError) as error:
            raise Denial(400, wire.INVALID_ARGUMENT, str(error)[:300]) from error
        revision = await self._store.transact([], [Put(put.key, put.value, put.lease)])
        assert revision is not None, "a transaction without conditions applies"
        return _json(relay_wire.encode_put(revision))

    async def _grant(self, _request: web.Request, pod: PodIdentity, body: bytes) -> web.StreamResponse:
        ttl_s = min(max(relay_wire.decode_grant(body), TTL_S.start), TTL_S.stop - 1)
        family = _lease_family(pod)
        first = random.randrange(LEASE_SLOTS)  # noqa: S311 (spreads, hides nothing)
        for slot in range(LEASE_SLOTS):
            lease = await self._store.grant(ttl_s, lease=family + (first + slot) % LEASE_SLOTS)
            if lease:
                return _json(relay_wire.encode_grant(lease, ttl_s, self._mirror.revision))
        raise Denial(429, wire.RESOURCE_EXHAUSTED, f"this pod has {LEASE_SLOTS} leases already")

    async def _keep_alive(self, _request: web.Request, pod: PodIdentity, body: bytes) -> web.StreamResponse:
        lease = relay_wire.decode_lease(body)
        self._check_lease(pod, lease)
        alive = await self._store.keep_alive(lease)
        return _json(relay_wire.encode_kept(lease, self._mirror.revision, alive=alive))

    async def _refuse(self, request: web.Request, _pod: PodIdentity, _body: bytes) -> web.StreamResponse:
        raise forbidden(f"{request.method} {request.path[:100]} is not served to pods")

    def _check_lease(self, pod: PodIdentity, lease: int) -> None:
        report = self._mirror.values.get(self._keys.report(pod.namespace, pod.uid))
        of_report = report is not None and report.lease == lease
        if lease - lease % LEASE_SLOTS != _lease_family(pod) and not of_report:
            raise forbidden("the lease is not this pod's")

    # --- watches

    async def _watch(
        self, request: web.Request, pod: PodIdentity, opening: tuple[bytes, Beats | None]
    ) -> web.StreamResponse:
        body, beats = opening
        targets = relay_wire.decode_watch(body)
        for target in targets:
            self._check_readable(pod, target.key)
        if self._closing:
            raise Denial(503, wire.UNAVAILABLE, "this replica stops")
        if self._watches[pod.uid] >= WATCHES_PER_POD:
            raise Denial(429, wire.RESOURCE_EXHAUSTED, f"a pod holds at most {WATCHES_PER_POD} watches")
        self._check_healthy()
        async with self._counted(pod, targets) as subscription:
            await self._catch_up(targets)
            response = web.StreamResponse(headers={"Content-Type": "application/json", wire.HEARTBEAT: TAKEN})
            await response.prepare(request)
            ends_at = self._clock() + WATCH_S * random.uniform(0.8, 1.2)  # noqa: S311 (spreads reconnects)
            watcher = Watcher(self._mirror, request, response, subscription, targets, self._store.cluster)

            def over() -> bool:
                return self._closing or self._clock() > ends_at

            try:
                with self._pulse.feeling(Feeling(pod, watcher, beats, over)):
                    await watcher.run(over)
                await response.write_eof()
            except TimeoutError:
                watcher.abort()
            except Denial as denial:
                await response.write_eof(relay_wire.encode_end(denial))
                request.protocol.force_close()
            except ConnectionError:
                logger.debug("relay.watch_gone", extra={"namespace": pod.namespace, "pod": pod.name})
            return response

    @asynccontextmanager
    async def _counted(self, pod: PodIdentity, targets: list[WatchTarget]) -> AsyncIterator[Subscription]:
        subscription = self._mirror.subscribe(target.key for target in targets)
        self._subscriptions.add(subscription)
        self._watches[pod.uid] += 1
        self._metrics.relay_connections.inc()
        try:
            yield subscription
        finally:
            self._metrics.relay_connections.dec()
            self._watches[pod.uid] -= 1
            if not self._watches[pod.uid]:
                del self._watches[pod.uid]
            self._subscriptions.discard(subscription)
            subscription.close()

    async def _catch_up(self, targets: list[WatchTarget]) -> None:
        """Wait for what the pod saw already, maybe through another replica."""
        seen = max(target.start_revision - 1 for target in targets)
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._mirror.reached(seen)
        except TimeoutError as error:
            # Not refused: a pod that saw more than the store has must find out that the store began anew.
            logger.debug("relay.behind", extra={"revision": seen, "error": str(error)})


def _lease_family(pod: PodIdentity) -> int:
    """Return the first of the lease ids that belong to a pod.

    They follow from its UID, so that every replica knows whose a lease is without remembering it, also after a restart.
    The UID comes from Kubernetes: a pod cannot choose one that hits another's.
    """
    digest = hashlib.sha256(f"{pod.namespace}/{pod.uid}".encode()).digest()
    number = int.from_bytes(digest[:8]) >> 1  # etcd's ids are signed
    # Never 0, which means: no lease.
    return (number - number % LEASE_SLOTS) or LEASE_SLOTS


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _answer(denial: Denial) -> web.Response:
    response = web.Response(status=denial.status, body=denial.body, content_type="application/json")
    if denial.status in {401, 408, 413, 415}:
        # The rest of the body is not worth waiting for, nor is room for who is nobody.
        response.force_close()
    return response
