"""Complete lists of what kopf watches: once at the start, and every ten minutes.

kopf's `on.event` says neither when its first list is complete nor what was deleted while a watch was away (after
410 Gone it lists again). The lists make both known; between them kopf's events are faster.
"""

from __future__ import annotations

import asyncio
import logging
import random

import aiohttp

from ebbtide_operator.cluster.api import Api, ApiError
from ebbtide_operator.cluster.workloads import Listing, Workloads
from ebbtide_operator.core import names
from ebbtide_operator.core.model import WorkloadKey

logger = logging.getLogger(__name__)

EVERY_S = 600.0
RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
PAGE = "500"
DEPLOYMENTS = "/apis/apps/v1/deployments"
REPLICA_SETS = "/apis/apps/v1/replicasets"
DRAINS = f"/apis/{names.DOMAIN}/{names.API_VERSION}/drains"


class Resync:
    """Keep `Workloads` complete.

    Args:
        api: The connection.
        workloads: The cache.
    """

    def __init__(self, api: Api, workloads: Workloads) -> None:
        self._api = api
        self._workloads = workloads
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """List until cancelled; `synced` is set after the first time."""
        failures = 0
        while True:
            try:
                await self.resync()
                failures = 0
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                failures += 1
                logger.warning("resync.retry", extra={"error": str(error) or repr(error)})
            pause_s = min(RETRY_S * 2**failures, LONGEST_RETRY_S) if failures else EVERY_S
            # Jitter, so that the replicas do not list together.
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311

    async def resync(self) -> None:
        """List once.

        Raises:
            ApiError: The API server refused.
            aiohttp.ClientError, TimeoutError: It could not be asked.
        """
        self._workloads.expect_lists()
        # ReplicaSets last: one that was made meanwhile has its Deployment in the list before.
        deployments = await self._list(DEPLOYMENTS)
        replica_sets = await self._list(REPLICA_SETS)
        drains = await self._list(DRAINS)
        self._workloads.take_lists(deployments, replica_sets)
        for document in drains.documents:
            kind, _, name = document["metadata"]["name"].partition("-")
            self._workloads.concern(WorkloadKey(document["metadata"]["namespace"], kind, name))
        self.synced.set()

    async def _list(self, path: str) -> Listing:
        documents = []
        params = {"limit": PAGE}
        try:
            while True:
                page = await self._api.get(path, **params)
                documents += page["items"]
                if not page["metadata"].get("continue"):
                    return Listing(documents, int(page["metadata"]["resourceVersion"]))
                params["continue"] = page["metadata"]["continue"]
        except ApiError as error:
            # Without the definition of Drain there are none.
            if error.status == 404 and path == DRAINS:
                return Listing((), 0)
            raise
