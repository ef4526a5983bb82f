"""Which requests a real API server asks the webhooks about: the conditions are CEL, which only it can judge."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ebbtide_operator.core import names
from tests.contract.chart.api_server import ApiServer
from tests.contract.chart.rendering import NAMESPACE
from tests.localcluster.certificates import Authority

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(1200)]

CONTROLLER = names.REPLICASET_CONTROLLER
SHARED = names.CONTROLLER_MANAGER
REFUSED = 429


class Webhook:
    """Answers every admission request and remembers it; deletions are refused."""

    def __init__(self, folder: Path) -> None:
        authority = Authority("webhooks")
        authority.issue("webhooks", addresses=[IPv4Address("127.0.0.1")]).write(folder, "server")
        self.bundle = b64encode(authority.pair.certificate).decode()
        self.asked: list[dict[str, Any]] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
                asked.append(request)
                response = {"uid": request["uid"], "allowed": request["operation"] != "DELETE"}
                review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
                if not response["allowed"]:
                    response["status"] = {"code": REFUSED, "message": "held"}
                body = json.dumps(review).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def configuration(self, path: str) -> dict[str, str]:
        return {"url": f"https://127.0.0.1:{self.server.server_address[1]}{path}", "caBundle": self.bundle}


@pytest.fixture(scope="module")
def webhook(api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    """The chart's webhook configurations, led to a server of the test instead of a Service."""
    hook = Webhook(tmp_path_factory.mktemp("webhook"))
    thread = threading.Thread(target=hook.server.serve_forever)
    thread.start()
    api.install("ebbtide", NAMESPACE)
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}/ebbtide"
        document = api.get(path)
        service = document["webhooks"][0]["clientConfig"]["service"]
        document["webhooks"][0]["clientConfig"] = hook.configuration(service["path"])
        status, answer = api.request("PUT", path, document)
        assert status == 200, answer
    for namespace in ("shop", NAMESPACE, "kube-system"):
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        api.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "default"}})
    yield hook
    api.uninstall("ebbtide", NAMESPACE)
    hook.server.shutdown()
    thread.join()
    hook.server.server_close()


class Pods:
    """Makes pods as a controller would, and asks to delete them."""

    def __init__(self, api: ApiServer, webhook: Webhook) -> None:
        self._api = api
        self._webhook = webhook
        self._made: list[str] = []

    def make(self, *, namespace: str = "shop", owner: str | None = "ReplicaSet", label: str | None = "true") -> str:
        """Return the path of a new pod; on a node, since the server deletes others without any grace."""
        owners = (
            [{"apiVersion": "apps/v1", "kind": owner, "name": "a", "uid": "1", "controller": True}] if owner else []
        )
        body = {
            "metadata": {
                "name": f"pod-{len(self._made)}",
                "labels": {names.MANAGED: label} if label else {},
                "ownerReferences": owners,
            },
            "spec": {
                "nodeName": "node-1",
                "automountServiceAccountToken": False,
                "containers": [{"name": "a", "image": "a"}],
            },
        }
        status, answer = self._api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body)
        assert status == 201, answer
        self._made.append(f"/api/v1/namespaces/{namespace}/pods/{answer['metadata']['name']}")
        return self._made[-1]

    def delete(self, path: str, user: str, **options: Any) -> int:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        return self._api.request("DELETE", path, body, user=user)[0]

    def patch_status(self, path: str, **status: Any) -> None:
        assert self._api.request("PATCH", f"{path}/status", {"status": status})[0] == 200

    def uid(self, path: str) -> str:
        return str(self._api.get(path)["metadata"]["uid"])

    def asked(self, operation: str) -> list[dict[str, Any]]:
        return [request for request in self._webhook.asked if request["operation"] == operation]

    def close(self) -> None:
        for path in self._made:
            self._api.request("DELETE", path, {"gracePeriodSeconds": 0})


@pytest.fixture
def pods(api: ApiServer, webhook: Webhook) -> Iterator[Pods]:
    webhook.asked.clear()
    made = Pods(api, webhook)
    yield made
    made.close()


@pytest.mark.parametrize("user", [CONTROLLER, SHARED])
def test_the_replicaset_controller_is_asked_about(pods: Pods, user: str) -> None:
    assert pods.delete(pods.make(), user) == REFUSED
    (request,) = pods.asked("DELETE")
    assert request["userInfo"]["username"] == user


def test_a_dry_run_is_asked_about_too(pods: Pods) -> None:
    assert pods.delete(pods.make(), CONTROLLER, dryRun=["All"]) == REFUSED


def test_a_shorter_grace_period_is_still_asked_about(pods: Pods) -> None:
    assert pods.delete(pods.make(), CONTROLLER, gracePeriodSeconds=5) == REFUSED


@pytest.mark.parametrize(
    "user",
    [
        "jane",
        "system:serviceaccount:kube-system:generic-garbage-collector",
        "system:serviceaccount:kube-system:namespace-controller",
        "system:serviceaccount:kube-system:node-controller",
        "system:serviceaccount:kube-system:pod-garbage-collector",
        "system:kube-scheduler",
        "system:node:node-1",
    ],
)
def test_nobody_else_is_asked_about(pods: Pods, user: str) -> None:
    assert pods.delete(pods.make(), user) == 200
    assert pods.asked("DELETE") == []


def test_a_forced_delete_is_not_asked_about(pods: Pods) -> None:
    assert pods.delete(pods.make(), CONTROLLER, gracePeriodSeconds=0) == 200
    assert pods.asked("DELETE") == []


def test_a_pod_on_its_way_out_is_not_asked_about(pods: Pods) -> None:
    path = pods.make()
    assert pods.delete(path, "jane") == 200
    assert pods.delete(path, CONTROLLER) == 200
    assert pods.asked("DELETE") == []


@pytest.mark.parametrize("label", [None, "floor"])
def test_a_pod_that_is_not_held_is_not_asked_about(pods: Pods, label: str | None) -> None:
    assert pods.delete(pods.make(label=label), CONTROLLER) == 200
    assert pods.asked("DELETE") == []


@pytest.mark.parametrize("namespace", ["kube-system", NAMESPACE])
def test_the_clusters_and_the_operators_pods_are_not_asked_about(pods: Pods, namespace: str) -> None:
    assert pods.delete(pods.make(namespace=namespace), CONTROLLER) == 200
    assert pods.asked("DELETE") == []
    assert pods.asked("CREATE") == []


def test_the_garbage_collector_under_the_shared_identity_is_not_asked_about(pods: Pods) -> None:
    path = pods.make()
    assert pods.delete(path, SHARED, preconditions={"uid": pods.uid(path)}, propagationPolicy="Background") == 200
    assert pods.asked("DELETE") == []


def test_the_namespace_controller_under_the_shared_identity_is_not_asked_about(pods: Pods) -> None:
    assert pods.delete(pods.make(), SHARED, propagationPolicy="Background") == 200
    assert pods.asked("DELETE") == []


def test_taint_eviction_under_the_shared_identity_is_not_asked_about(pods: Pods) -> None:
    path = pods.make()
    pods.patch_status(
        path, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]
    )
    assert pods.delete(path, SHARED) == 200
    assert pods.asked("DELETE") == []


def test_other_conditions_do_not_let_the_shared_identity_pass(pods: Pods) -> None:
    path = pods.make()
    pods.patch_status(path, conditions=[{"type": "Ready", "status": "True"}])
    assert pods.delete(path, SHARED) == REFUSED


def test_new_pods_of_replicasets_are_asked_about(pods: Pods) -> None:
    pods.make()
    (request,) = pods.asked("CREATE")
    assert request["object"]["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"


@pytest.mark.parametrize("owner", ["Job", None])
def test_other_new_pods_are_not_asked_about(pods: Pods, owner: str | None) -> None:
    pods.make(owner=owner)
    assert pods.asked("CREATE") == []
