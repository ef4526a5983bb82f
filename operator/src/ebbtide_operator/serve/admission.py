"""The two webhooks of pods: what is added at their creation, and whether they may be deleted.

Both answer at once from caches and write nothing before they answered. Whatever goes wrong, the request passes as it
came: a pod without our floor, or an end without our hold, is what there was before Ebbtide.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
from aiohttp import web

from ebbtide_operator.cluster.pods import pod_view
from ebbtide_operator.cluster.workloads import Workloads, controller_of
from ebbtide_operator.core.floor import FloorEndpoint, floor_patch
from ebbtide_operator.core.model import Mode, PodView, WorkloadView
from ebbtide_operator.core.verdict import FAIL_OPEN, DeleteRequest, HoldContext, delete_verdict
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.serve import review as codec
from ebbtide_operator.serve.review import Review, ReviewError

logger = logging.getLogger(__name__)

CREATE = "/admit/pods/create"
DELETE = "/admit/pods/delete"
LOOKUP_S = 1.0
"""How long the one request to the API server may take; the webhook's own limit is 2 s."""

Document = Mapping[str, Any]


class ReplicaSets(Protocol):
    """Where a ReplicaSet is read that no event has told yet."""

    async def replica_set(self, namespace: str, name: str) -> dict[str, Any] | None: ...


class Admission:
    """The handlers.

    Args:
        workloads: The cache of who opted in.
        replica_sets: Asked where the cache does not know a ReplicaSet yet.
        endpoint: What a new pod is told; called once for each.
        context: What is known of a pod's workload and of the rest of Ebbtide.
        held: Told each pod whose deletion is refused, and who asked; it must not wait.
        metrics: Counts questions and answers.
        clock: Unix seconds.
    """

    def __init__(
        self,
        workloads: Workloads,
        replica_sets: ReplicaSets,
        endpoint: Callable[[], FloorEndpoint],
        context: Callable[[PodView], HoldContext],
        held: Callable[[PodView, str], None],
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._workloads = workloads
        self._replica_sets = replica_sets
        self._endpoint = endpoint
        self._context = context
        self._held = held
        self._metrics = metrics
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(CREATE, self._answering("create", self._create)),
            web.post(DELETE, self._answering("delete", self._delete)),
        ]

    def _answering(
        self, webhook: str, judge: Callable[[Review], Awaitable[tuple[Document, str]]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return a handler that decodes, judges and counts; an error of any kind lets the request pass."""

        async def handle(request: web.Request) -> web.StreamResponse:
            with self._metrics.admission_duration.labels(webhook).time():
                try:
                    review = codec.decode(await request.read())
                except ReviewError as error:
                    self._count(webhook, "none", "bad_request")
                    logger.warning("admission.bad_request", extra={"webhook": webhook, "error": str(error)})
                    return web.Response(status=400, text=str(error))
                try:
                    answer, cause = await judge(review)
                except Exception:
                    logger.exception("admission.failed", extra={"webhook": webhook, "namespace": review.namespace})
                    answer, cause = codec.allow(review.uid), "error"
                    if webhook == "create":
                        self._metrics.floor_patches.labels("error").inc()
                self._count(webhook, "allow" if answer["response"]["allowed"] else "deny", cause)
                return web.json_response(answer)

        return handle

    async def _create(self, review: Review) -> tuple[Document, str]:
        # metadata.namespace is still empty where the request's path says it.
        workload, cause = await self._workload_of_new(review.namespace, review.object)
        if workload is None or workload.policy.mode is Mode.OFF:
            if cause == "lookup_failed":
                self._metrics.floor_patches.labels(cause).inc()
            return codec.allow(review.uid), cause
        patch = floor_patch(review.object, workload.key, workload.policy, self._endpoint())
        self._metrics.floor_patches.labels("partial" if patch.notes else "complete").inc()
        for note in patch.notes:
            logger.info("floor.note", extra={"workload": str(workload.key), "note": note})
        return codec.allow(review.uid, patch.operations), "floor"

    async def _workload_of_new(self, namespace: str, pod: Document) -> tuple[WorkloadView | None, str]:
        owner = controller_of(pod, "ReplicaSet")
        if owner is None:
            return None, "no_workload"
        found = self._workloads.for_new_pod(owner["uid"])
        if found is not None:
            return found, "not_managed"
        # Its event may come after its first pod: two connections.
        try:
            async with asyncio.timeout(LOOKUP_S):
                document = await self._replica_sets.replica_set(namespace, owner["name"])
        except Exception as error:  # noqa: BLE001 (whatever it is: the pod must not wait for it)
            logger.warning("floor.lookup_failed", extra={"namespace": namespace, "error": str(error) or repr(error)})
            return None, "lookup_failed"
        if document is None or document["metadata"]["uid"] != owner["uid"]:
            return None, "no_workload"
        found = self._workloads.for_new_pod_of(document)
        return found, "no_workload" if found is None else "not_managed"

    async def _delete(self, review: Review) -> tuple[Document, str]:
        try:
            pod = pod_view(review.old_object)
        except (msgspec.ValidationError, ValueError) as error:
            logger.warning("admission.bad_pod", extra={"namespace": review.namespace, "error": str(error)})
            return codec.allow(review.uid), "bad_pod"
        grace_s = review.options.get("gracePeriodSeconds")
        request = DeleteRequest(user=review.user, pod=pod, grace_period_s=grace_s if isinstance(grace_s, int) else None)
        verdict = delete_verdict(request, self._context(pod), self._clock())
        if verdict.allow:
            if verdict.cause in FAIL_OPEN:
                self._metrics.fail_open.labels(verdict.cause).inc()
                logger.warning("hold.failed_open", extra={"pod": f"{pod.namespace}/{pod.name}", "cause": verdict.cause})
            return codec.allow(review.uid), verdict.cause
        if not review.dry_run:
            self._held(pod, review.user)
        return codec.deny(review.uid, verdict.code, verdict.message), verdict.cause

    def _count(self, webhook: str, verdict: str, cause: str) -> None:
        self._metrics.admission_requests.labels(webhook, verdict, cause).inc()
