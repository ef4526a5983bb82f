"""What the operator writes to Kubernetes, and the few reads that no cache answers."""

from __future__ import annotations

import datetime as dt
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ebbtide.environment import TOKEN_AUDIENCE
from ebbtide_operator.cluster.api import Api, ApiError, Document
from ebbtide_operator.cluster.certificates import OWNED_LABEL, Secret, decode
from ebbtide_operator.cluster.pods import pod_view
from ebbtide_operator.core import names
from ebbtide_operator.core.model import PodView, WorkloadKey, WorkloadView
from ebbtide_operator.ports import Conflict, PodIdentity, Refused

DRAINS = f"/apis/{names.DOMAIN}/{names.API_VERSION}/namespaces"
KINDS = {"deployment": "Deployment"}


class KubernetesCluster:
    """`ports.Cluster` on the real API, with the token review and the webhook configurations beside it."""

    def __init__(self, api: Api, on_pod: Callable[[Document], None] = lambda _document: None) -> None:
        self._api = api
        self._on_pod = on_pod

    async def patch_pod(
        self,
        pod: PodView,
        *,
        annotations: Mapping[str, str | None] | None = None,
        labels: Mapping[str, str | None] | None = None,
    ) -> None:
        # The UID makes the patch conditional: a pod of the same name that came later answers 409.
        metadata: Document = {"uid": pod.uid}
        if annotations:
            metadata["annotations"] = dict(annotations)
        if labels:
            metadata["labels"] = dict(labels)
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        try:
            self._on_pod(await self._api.patch(path, {"metadata": metadata}))
        except ApiError as error:
            _conflict(error, f"pod {pod.namespace}/{pod.name}")

    async def delete_pod(self, pod: PodView) -> None:
        try:
            document = await self._api.delete(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", uid=pod.uid)
        except ApiError as error:
            # Gone, or another pod of the same name: somebody was faster, and that is as good.
            if error.status not in {404, 409}:
                raise Refused(str(error)) from error
            return
        # A pod that is terminating now; one that nothing ran of is gone at once, and the answer may say only that.
        if "deletionTimestamp" in document.get("metadata", {}):
            self._on_pod(document)

    async def unlabelled_pods(self, workload: WorkloadView) -> Sequence[PodView]:
        sets = {view.uid for view in workload.sets}
        path = f"/api/v1/namespaces/{workload.key.namespace}/pods"
        # Only pods of a ReplicaSet carry the template hash; resourceVersion 0 is answered from the API server's cache.
        selector = f"{names.TEMPLATE_HASH},!{names.MANAGED}"
        document = await self._api.get(path, labelSelector=selector, resourceVersion="0")
        views = (pod_view(item) for item in document["items"])
        return [view for view in views if view.owner_uid in sets]

    async def write_status(self, workload: WorkloadView, status: Mapping[str, object]) -> None:
        path = f"{DRAINS}/{workload.key.namespace}/drains"
        name = drain_name(workload.key)
        try:
            # A merge patch keeps keys that are missing from it; None removes those that an earlier status had.
            await self._api.patch(f"{path}/{name}/status", {"status": dict(status)})
        except ApiError as error:
            if error.status != 404:
                raise
            await self._create_drain(path, name, workload)
            await self._api.patch(f"{path}/{name}/status", {"status": dict(status)})

    async def remove_status(self, key: WorkloadKey) -> None:
        try:
            await self._api.delete(f"{DRAINS}/{key.namespace}/drains/{drain_name(key)}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def read_status(self, key: WorkloadKey) -> Mapping[str, object] | None:
        try:
            document = await self._api.get(f"{DRAINS}/{key.namespace}/drains/{drain_name(key)}")
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        status: Mapping[str, object] = document.get("status", {})
        return status

    async def post_event(self, workload: WorkloadView, reason: str, message: str, *, warning: bool) -> None:
        now = dt.datetime.now(dt.UTC)
        stamp = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        event: Document = {
            "metadata": {"generateName": f"{workload.key.name}.", "namespace": workload.key.namespace},
            "involvedObject": {
                "apiVersion": "apps/v1",
                "kind": KINDS[workload.key.kind],
                "namespace": workload.key.namespace,
                "name": workload.key.name,
                "uid": workload.uid,
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message[:1024],
            "source": {"component": "ebbtide"},
            "reportingComponent": "ebbtide.dev/operator",
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        try:
            await self._api.create(f"/api/v1/namespaces/{workload.key.namespace}/events", event)
        except ApiError as error:
            # A namespace on its way out takes no new objects: nobody is left to read the Event.
            if error.status not in {403, 404}:
                raise

    async def authenticate(self, token: str) -> PodIdentity | None:
        """Ask the API server whose token this is; None: not valid, not for us, or not bound to a pod."""
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
        }
        answer = await self._api.create("/apis/authentication.k8s.io/v1/tokenreviews", review)
        status = answer.get("status", {})
        # A server that does not know audiences answers without them: then the token may be anybody's.
        if not status.get("authenticated") or TOKEN_AUDIENCE not in status.get("audiences", []):
            return None
        user = status.get("user", {})
        extra = user.get("extra", {})
        name = extra.get("authentication.kubernetes.io/pod-name", [""])[0]
        uid = extra.get("authentication.kubernetes.io/pod-uid", [""])[0]
        account = user.get("username", "").split(":")
        if not name or not uid or account[:2] != ["system", "serviceaccount"] or len(account) != 4:
            return None
        return PodIdentity(namespace=account[2], name=name, uid=uid)

    async def replica_set(self, namespace: str, name: str) -> Document | None:
        try:
            # Without a resourceVersion: the API server answers from the newest state, not from what it has cached.
            return await self._api.get(f"/apis/apps/v1/namespaces/{namespace}/replicasets/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def trusts(self, name: str, bundle: bytes, *, mend: bool) -> bool:
        """Say whether the API server trusts us: both webhook configurations of this name carry the authority.

        Args:
            name: Of both configurations; one that does not exist is not wanted, and no reason to say no.
            bundle: Certificates in PEM.
            mend: Write it where it is missing.
        """
        wanted = b64encode(bundle).decode()
        trusted = True
        for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
            path = f"/apis/admissionregistration.k8s.io/v1/{kind}/{name}"
            try:
                document = await self._api.get(path)
                hooks = document.get("webhooks", [])
                if all(hook["clientConfig"].get("caBundle") == wanted for hook in hooks):
                    continue
                if not mend:
                    trusted = False
                    continue
                for hook in hooks:
                    hook["clientConfig"]["caBundle"] = wanted
                # The whole object with its resourceVersion: a merge patch would replace the list unconditionally.
                await self._api.replace(path, document)
            except ApiError as error:
                if error.status == 409:
                    # Somebody else wrote it; the next round looks again.
                    trusted = False
                elif error.status != 404:
                    raise
        return trusted

    async def _create_drain(self, path: str, name: str, workload: WorkloadView) -> None:
        body: Document = {
            "apiVersion": f"{names.DOMAIN}/{names.API_VERSION}",
            "kind": "Drain",
            "metadata": {
                "name": name,
                "ownerReferences": [
                    {
                        "apiVersion": "apps/v1",
                        "kind": KINDS[workload.key.kind],
                        "name": workload.key.name,
                        "uid": workload.uid,
                    }
                ],
            },
        }
        try:
            await self._api.create(path, body)
        except ApiError as error:
            if error.status != 409:
                raise


class KubernetesSecrets:
    """`certificates.Secrets` on the real API."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    async def get(self, name: str) -> Secret | None:
        try:
            document = await self._api.get(f"{self._path}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        metadata = document["metadata"]
        owned = OWNED_LABEL in metadata.get("labels", {})
        return Secret(name, decode(document.get("data")), metadata["resourceVersion"], owned)

    async def create(self, name: str, data: Mapping[str, str], label: str) -> None:
        try:
            await self._api.create(self._path, self._body(name, data, label))
        except ApiError as error:
            _conflict(error, f"secret {name}")

    async def replace(self, name: str, data: Mapping[str, str], label: str, resource_version: str) -> None:
        body = self._body(name, data, label)
        body["metadata"]["resourceVersion"] = resource_version
        try:
            await self._api.replace(f"{self._path}/{name}", body)
        except ApiError as error:
            _conflict(error, f"secret {name}")

    def _body(self, name: str, data: Mapping[str, str], label: str) -> Document:
        kind = "kubernetes.io/tls" if "tls.crt" in data else "Opaque"
        return {"metadata": {"name": name, "labels": {label: "true"}}, "type": kind, "data": dict(data)}


def drain_name(key: WorkloadKey) -> str:
    """Return the name of a workload's Drain object."""
    return f"{key.kind}-{key.name}"


def _conflict(error: ApiError, what: str) -> NoReturn:
    if error.status in {404, 409, 422}:
        raise Conflict(f"{what}: {error}") from error
    raise error
