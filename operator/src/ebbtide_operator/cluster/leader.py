"""Who plans: one replica, by a Lease (docs/decisions/0005-leader-election.md).

The Lease keeps two planners apart most of the time; the epoch in the store keeps a deposed one from writing. Only this
process's own monotonic clock is read: times in the Lease are for people.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from ebbtide_operator.cluster.api import Api, ApiError

logger = logging.getLogger(__name__)

Document = dict[str, Any]


class Lease(Protocol):
    """One Lease object of the API; ApiError 404 and 409 as the server gives them."""

    async def get(self) -> Document: ...

    async def create(self, spec: Document) -> Document: ...

    async def replace(self, lease: Document) -> Document: ...


class KubernetesLease:
    """`Lease` on the real API."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._name = name
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    async def get(self) -> Document:
        return await self._api.get(f"{self._path}/{self._name}")

    async def create(self, spec: Document) -> Document:
        return await self._api.create(self._path, {"metadata": {"name": self._name}, "spec": spec})

    async def replace(self, lease: Document) -> Document:
        return await self._api.replace(f"{self._path}/{self._name}", lease)


@dataclass(frozen=True, slots=True)
class Timing:
    """The three numbers of a Lease, in seconds."""

    duration_s: float = 15.0
    """A Lease that did not change for this long is free."""

    @property
    def renew_deadline_s(self) -> float:
        """A leader that could not renew for this long stops, a third of the duration before anybody may follow it."""
        return self.duration_s * 2 / 3

    @property
    def retry_s(self) -> float:
        return self.duration_s * 2 / 15


class LeaderElection:
    """Campaign for a Lease and lead while it is ours.

    Args:
        lease: The Lease.
        identity: Unique among the replicas that run; the same again after a restart takes its Lease up at once.
        timing: The Lease's numbers.
        clock: Monotonic seconds.
        sleep: Waits for as many seconds of that clock.
    """

    def __init__(
        self,
        lease: Lease,
        identity: str,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = lease
        self._identity = identity
        self._timing = timing
        self._clock = clock
        self._sleep = sleep
        self._lease: Document | None = None
        self._seen_at: float | None = None
        self._started_at = clock()
        self._renewed_at: float | None = None

    @property
    def holds(self) -> bool:
        """True while no other replica can hold the Lease: also right after this process was stopped and continued."""
        return self._renewed_at is not None and self._clock() < self._renewed_at + self._timing.duration_s

    @property
    def age_s(self) -> float:
        """Seconds since a leader was last heard: since the Lease changed, as seen from here, or since the start."""
        seen = self._started_at if self._seen_at is None else self._seen_at
        return max(0.0, self._clock() - seen)

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Campaign until cancelled; run `lead` while the Lease is held, cancel it at once when it is not.

        Where `lead` returns, the Lease is given back and campaigned for again. On cancellation it is given back last:
        the next leader starts after this one has stopped.
        """
        while True:
            while not await self._attempt():
                await self._sleep(self._timing.retry_s)
            logger.info("leader.elected", extra={"identity": self._identity})
            try:
                await self._lead(lead)
            finally:
                await self._release()
            await self._sleep(self._timing.retry_s)

    async def _lead(self, lead: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._renew())
            leading = group.create_task(_call(lead))
            try:
                await asyncio.wait({renewing, leading}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                renewing.cancel()
                leading.cancel()

    async def _renew(self) -> None:
        """Renew until the deadline passed without a success, or another holder was seen."""
        while True:
            await self._sleep(self._timing.retry_s)
            if await self._attempt():
                continue
            if self._holder() != self._identity:
                logger.error("leader.lost", extra={"identity": self._identity, "holder": self._holder()})
                return
            assert self._renewed_at is not None
            if self._clock() >= self._renewed_at + self._timing.renew_deadline_s:
                logger.error("leader.lost", extra={"identity": self._identity, "holder": "unknown: no answer in time"})
                return

    async def _attempt(self) -> bool:
        """Take or renew the Lease; False where another holds it or the API server did not answer."""
        began = self._clock()
        try:
            async with asyncio.timeout(self._patience_s(began)):
                return await self._take(began)
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("leader.retry", extra={"identity": self._identity, "error": str(error) or repr(error)})
            return False

    def _patience_s(self, now: float) -> float:
        patience_s = self._timing.retry_s * 2
        if self._renewed_at is None:
            return patience_s
        # A request that hangs must not carry a leader past its deadline.
        return max(0.0, min(patience_s, self._renewed_at + self._timing.renew_deadline_s - now))

    async def _take(self, began: float) -> bool:
        try:
            lease = await self._store.get()
        except ApiError as error:
            if error.status != 404:
                raise
            created = await self._store.create(self._spec(transitions=0))
            return self._own(created, began)
        self._observe(lease)
        spec = lease.get("spec", {})
        holder = spec.get("holderIdentity", "")
        if holder not in {"", self._identity} and not self._expired(spec):
            return False
        transitions = spec.get("leaseTransitions", 0) + (holder != self._identity)
        acquired = spec.get("acquireTime") if holder == self._identity else None
        # The resourceVersion of what was read makes the update conditional: of two candidates one gets 409.
        renewed = await self._store.replace({**lease, "spec": self._spec(transitions, acquired)})
        return self._own(renewed, began)

    def _expired(self, spec: Document) -> bool:
        assert self._seen_at is not None
        return self._clock() >= self._seen_at + float(spec.get("leaseDurationSeconds", self._timing.duration_s))

    def _observe(self, lease: Document) -> None:
        if self._lease is None or lease.get("spec") != self._lease.get("spec"):
            self._seen_at = self._clock()
        self._lease = lease

    def _own(self, lease: Document, began: float) -> bool:
        self._observe(lease)
        # From before the request: the server's own time of it is later, never earlier.
        self._renewed_at = began
        return True

    def _holder(self) -> str:
        holder: str = (self._lease or {}).get("spec", {}).get("holderIdentity", "")
        return holder

    async def _release(self) -> None:
        ours = self.holds and self._lease is not None and self._holder() == self._identity
        self._renewed_at = None
        if not ours or self._lease is None:
            return
        spec = {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            async with asyncio.timeout(self._timing.retry_s):
                self._lease = await self._store.replace({**self._lease, "spec": spec})
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("leader.release_failed", extra={"error": str(error) or repr(error)})
        else:
            logger.info("leader.released", extra={"identity": self._identity})

    def _spec(self, transitions: int, acquired: str | None = None) -> Document:
        now = _now()
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._timing.duration_s)),
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }


async def _call(lead: Callable[[], Awaitable[None]]) -> None:
    await lead()


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
