"""The chart on a real API server: accepted, installed, upgraded, taken away."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from ebbtide_operator.core.decide import decide
from ebbtide_operator.core.model import WriteStatus
from tests.contract.chart.api_server import ApiServer
from tests.contract.chart.rendering import CASES, NAMESPACE, only, pod_templates, render
from tests.unit.chart.test_status import draining
from tests.unit.core.builders import NOW

# Where nothing is compiled yet, the API server and Helm take minutes, once.
pytestmark = [pytest.mark.etcd, pytest.mark.timeout(1200)]

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1"
BOTH = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
DEFAULT_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "example.com/none",
}
SECOND = {"allowSecondRelease": True, "crds": {"enabled": False}}


@pytest.fixture
def release(api: ApiServer) -> Iterator[str]:
    """The chart, installed with no values."""
    api.install("ebbtide", NAMESPACE)
    yield "ebbtide"
    api.uninstall("ebbtide", NAMESPACE)


@pytest.fixture
def default_class(api: ApiServer) -> Iterator[None]:
    path = "/apis/storage.k8s.io/v1/storageclasses"
    api.request("POST", path, DEFAULT_CLASS)
    yield
    api.request("DELETE", f"{path}/standard")


def authorities(api: ApiServer) -> list[str | None]:
    return [api.get(f"{WEBHOOKS}/{kind}/ebbtide")["webhooks"][0]["clientConfig"].get("caBundle") for kind in BOTH]


def etcd(api: ApiServer, namespace: str, fullname: str) -> dict[str, Any]:
    spec: dict[str, Any] = api.get(f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{fullname}-etcd")["spec"]
    return spec


@pytest.mark.parametrize("case", [case for case in CASES if case != "monitors"])
def test_the_server_accepts_every_object(api: ApiServer, case: str) -> None:
    found = render(CASES[case], release="dry", namespace="default")
    said = api.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=yaml.safe_dump_all(found))
    assert said.count("(server dry run)") == len(found)


@pytest.mark.parametrize("case", CASES)
def test_pods_may_run_where_only_the_restricted_profile_may(api: ApiServer, case: str) -> None:
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": "restricted", "labels": labels}})
    for name, template in pod_templates(render(CASES[case])):
        for account in {"default", template["spec"].get("serviceAccountName", "default")}:
            api.request("POST", "/api/v1/namespaces/restricted/serviceaccounts", {"metadata": {"name": account}})
        pod = {"metadata": {"name": name, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
        for mount in template["spec"]["containers"][0]["volumeMounts"]:
            # A StatefulSet adds the volume of its claim.
            if mount["name"] not in {volume["name"] for volume in pod["spec"]["volumes"]}:
                pod["spec"]["volumes"].append({"name": mount["name"], "persistentVolumeClaim": {"claimName": "a"}})
        status, answer = api.request("POST", "/api/v1/namespaces/restricted/pods?dryRun=All", pod)
        assert status == 201, answer["message"]


def test_upgrades_keep_the_authority_that_the_operator_wrote(api: ApiServer, release: str) -> None:
    assert authorities(api) == [None, None]
    bundle = b64encode(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").decode()
    for kind in BOTH:
        # As the operator does: the whole object, with its resourceVersion.
        document = api.get(f"{WEBHOOKS}/{kind}/ebbtide")
        document["webhooks"][0]["clientConfig"]["caBundle"] = bundle
        status, answer = api.request("PUT", f"{WEBHOOKS}/{kind}/ebbtide", document)
        assert status == 200, answer
    assert authorities(api) == [bundle, bundle]
    # true: server-side apply (Helm 4); false: the three-way merge of Helm 3.
    for number, mode in enumerate(("true", "false", "true")):
        values = {"webhooks": {"excludeNamespaces": [f"excluded-{number}"]}}
        api.install(release, NAMESPACE, f"--server-side={mode}", values=values)
        hook = api.get(f"{WEBHOOKS}/{BOTH[0]}/ebbtide")["webhooks"][0]
        assert hook["namespaceSelector"]["matchExpressions"][0]["values"][-1] == f"excluded-{number}"
        assert authorities(api) == [bundle, bundle], mode
    api.helm("rollback", release, "1", "--namespace", NAMESPACE)
    assert authorities(api) == [bundle, bundle]


def test_an_upgrade_that_changes_nothing_restarts_nothing(api: ApiServer, release: str) -> None:
    def generations() -> list[int]:
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}"
        found = [api.get(f"{path}/deployments/ebbtide"), api.get(f"{path}/statefulsets/ebbtide-etcd")]
        return [one["metadata"]["generation"] for one in found]

    before = generations()
    api.install(release, NAMESPACE, "--server-side=true")
    api.install(release, NAMESPACE, "--server-side=false")
    assert generations() == before


def test_uninstall_leaves_the_definition_and_a_reinstallation_takes_it_over(api: ApiServer) -> None:
    api.install("ebbtide", NAMESPACE)
    assert "[CustomResourceDefinition] drains.ebbtide.dev" in api.uninstall("ebbtide", NAMESPACE)
    assert all(api.request("GET", f"{WEBHOOKS}/{kind}/ebbtide")[0] == 404 for kind in BOTH)
    assert api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/drains.ebbtide.dev")
    api.install("ebbtide", NAMESPACE)
    api.uninstall("ebbtide", NAMESPACE)
    refused = api.install("tides", NAMESPACE, check=False)
    assert "invalid ownership metadata" in refused.stderr
    api.install("tides", NAMESPACE, "--take-ownership")
    api.uninstall("tides", NAMESPACE)
    api.install("ebbtide", NAMESPACE, "--take-ownership")
    api.uninstall("ebbtide", NAMESPACE)


def test_a_second_release_is_refused_unless_it_is_wanted(api: ApiServer, release: str) -> None:
    refused = api.install("tides", "elsewhere", check=False)
    assert f"release {release} in namespace {NAMESPACE} is Ebbtide already" in refused.stderr
    api.install("tides", "elsewhere", values=SECOND)
    # The first one can still be upgraded while both are there, by the same word.
    api.install(release, NAMESPACE, values={"allowSecondRelease": True})
    api.uninstall("tides", "elsewhere")
    api.install(release, NAMESPACE)


@pytest.mark.usefixtures("default_class")
def test_etcd_gets_a_volume_where_the_cluster_has_a_default_class(api: ApiServer) -> None:
    api.install("tides", "volumes", values=SECOND)
    try:
        assert etcd(api, "volumes", "tides-ebbtide")["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
        # The class goes: what was chosen stays, since it cannot be changed.
        api.request("DELETE", "/apis/storage.k8s.io/v1/storageclasses/standard")
        api.install("tides", "volumes", values=SECOND)
        assert "volumeClaimTemplates" in etcd(api, "volumes", "tides-ebbtide")
    finally:
        api.uninstall("tides", "volumes")


def test_etcd_stays_without_a_volume_when_a_default_class_comes(api: ApiServer, release: str) -> None:
    api.request("POST", "/apis/storage.k8s.io/v1/storageclasses", DEFAULT_CLASS)
    try:
        api.install(release, NAMESPACE)
        assert "volumeClaimTemplates" not in etcd(api, NAMESPACE, "ebbtide")
    finally:
        api.request("DELETE", "/apis/storage.k8s.io/v1/storageclasses/standard")


def _status() -> Mapping[str, object]:
    (status,) = [one.status for one in decide(draining(), NOW).actions if isinstance(one, WriteStatus)]
    return status


def test_what_the_planner_writes_is_kept_and_shown(api: ApiServer, release: str) -> None:
    path = "/apis/ebbtide.dev/v1alpha1/namespaces/default/drains"
    body = {"apiVersion": "ebbtide.dev/v1alpha1", "kind": "Drain", "metadata": {"name": "deployment-orders"}}
    api.kubectl("wait", "--for=condition=Established", "crd/drains.ebbtide.dev")
    assert api.request("POST", path, body)[0] == 201
    try:
        written = json.loads(json.dumps(_status()))
        strict = f"{path}/deployment-orders/status?fieldValidation=Strict"
        status, answer = api.request("PATCH", strict, {"status": written})
        assert status == 200, answer
        assert api.get(f"{path}/deployment-orders")["status"] == written
        lines = api.kubectl("get", "drains", "--namespace", "default").splitlines()
        assert lines[0].split() == ["NAME", "PHASE", "DRAINING", "TASKS", "DEADLINE", "AGE"]
        assert all(len(line.rstrip()) <= 80 for line in lines)
        assert lines[1].split()[1:4] == [written["phase"], str(written["draining"]), str(written["tasksLeft"])]
        assert "<invalid>" not in lines[1]
        wide = api.kubectl("get", "drn", "--namespace", "default", "--output", "wide")
        assert str(written["message"]) in wide
        assert "deployment-orders" in api.kubectl("get", "ebbtide", "--namespace", "default")
        assert "blockedBy" in api.kubectl("explain", "drain.status")
        status, answer = api.request("PATCH", strict, {"status": {"tides": 1}})
        assert (status, "tides" in answer["message"]) == (422, True)
    finally:
        api.request("DELETE", f"{path}/deployment-orders")


ALLOWED = [
    "list deployments.apps --all-namespaces",
    "watch replicasets.apps --all-namespaces",
    "get replicasets.apps/a --namespace shop",
    "list pods --all-namespaces",
    "watch pods --all-namespaces",
    "patch pods/a --namespace shop",
    "delete pods/a --namespace shop",
    "create events --namespace shop",
    "create tokenreviews.authentication.k8s.io",
    "create drains.ebbtide.dev --namespace shop",
    "watch drains.ebbtide.dev --all-namespaces",
    "delete drains.ebbtide.dev/a --namespace shop",
    "patch drains.ebbtide.dev/a --subresource=status --namespace shop",
    "get mutatingwebhookconfigurations.admissionregistration.k8s.io/ebbtide",
    "update validatingwebhookconfigurations.admissionregistration.k8s.io/ebbtide",
    "get secrets/ebbtide-ca --namespace ebbtide-system",
    "update secrets/ebbtide-etcd-server-tls --namespace ebbtide-system",
    "create secrets --namespace ebbtide-system",
    "get leases.coordination.k8s.io/ebbtide-operator --namespace ebbtide-system",
    "update leases.coordination.k8s.io/ebbtide-operator --namespace ebbtide-system",
    "create leases.coordination.k8s.io --namespace ebbtide-system",
]
DENIED = [
    "deletecollection pods --namespace shop",
    "create pods --namespace shop",
    "create pods/a --subresource=exec --namespace shop",
    "patch deployments.apps/a --namespace shop",
    "delete replicasets.apps/a --namespace shop",
    "update mutatingwebhookconfigurations.admissionregistration.k8s.io/other",
    "delete validatingwebhookconfigurations.admissionregistration.k8s.io/ebbtide",
    "list secrets --all-namespaces",
    "list secrets --namespace ebbtide-system",
    "get secrets/other --namespace ebbtide-system",
    "get secrets/ebbtide-ca --namespace shop",
    "create secrets --namespace shop",
    "get leases.coordination.k8s.io/other --namespace ebbtide-system",
    "list namespaces",
    "impersonate users",
    "list customresourcedefinitions.apiextensions.k8s.io",
]


def _may(api: ApiServer, question: str) -> str:
    account = f"system:serviceaccount:{NAMESPACE}:ebbtide"
    return api.kubectl("auth", "can-i", *question.split(), "--as", account, check=False).splitlines()[-1]


def test_the_operator_may_do_its_work_and_nothing_else(api: ApiServer, release: str) -> None:
    assert release
    assert [question for question in ALLOWED if _may(api, question) != "yes"] == []
    assert [question for question in DENIED if _may(api, question) != "no"] == []


def test_the_definition_is_the_one_in_the_repository(api: ApiServer, release: str) -> None:
    assert release
    found = api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/drains.ebbtide.dev")
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert (conditions["NamesAccepted"], conditions.get("NonStructuralSchema")) == ("True", None)
    assert found["spec"]["versions"] == only(render(), "CustomResourceDefinition")["spec"]["versions"]
