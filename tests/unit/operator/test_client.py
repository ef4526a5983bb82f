import datetime as dt
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import kopf
import pytest

from ebbtide_operator.cluster import api as module
from ebbtide_operator.cluster.api import Api, ApiError
from ebbtide_operator.cluster.authority import make_authority
from ebbtide_operator.cluster.client import KubernetesCluster, KubernetesSecrets
from ebbtide_operator.cluster.pods import pod_view
from ebbtide_operator.core.model import PodView, ReplicaSetView, WorkloadKey, WorkloadView
from ebbtide_operator.ports import Conflict, Refused
from tests.unit.operator.fake_api import FakeApi, a_pod, pod_path, serving

DRAIN = "/apis/ebbtide.dev/v1alpha1/namespaces/shop/drains/deployment-orders"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
WORKLOAD = WorkloadView(
    key=WorkloadKey("shop", "deployment", "orders"),
    uid="uid-orders",
    generation=1,
    observed_generation=1,
    replicas=2,
    max_surge=1,
    max_unavailable=0,
    sets=(ReplicaSetView("orders-1", "set-1", replicas=2, observed_replicas=2, revision="1"),),
)


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


@pytest.fixture
async def api(fake: FakeApi) -> AsyncIterator[Api]:
    async with serving(fake) as api:
        yield api


async def test_a_patch_changes_the_marks_of_the_pod_and_shows_its_new_state(fake: FakeApi, api: Api) -> None:
    seen: list[dict[str, Any]] = []
    pod = pod_view(fake.put(pod_path("a"), a_pod("a", annotations={"old": "1", "mine": "2"})))
    await KubernetesCluster(api, seen.append).patch_pod(
        pod, annotations={"new": "3", "old": None}, labels={"ebbtide.dev/managed": None}
    )
    metadata = fake.objects[pod_path("a")]["metadata"]
    assert metadata["annotations"] == {"new": "3", "mine": "2"}
    assert metadata["labels"] == {"pod-template-hash": "abc"}
    assert seen == [fake.objects[pod_path("a")]]


async def test_a_patch_does_not_touch_another_pod_of_the_same_name(fake: FakeApi, api: Api) -> None:
    pod = pod_view(fake.put(pod_path("a"), a_pod("a", uid="old")))
    fake.put(pod_path("a"), a_pod("a", uid="new"))
    with pytest.raises(Conflict, match="shop/a"):
        await KubernetesCluster(api).patch_pod(pod, annotations={"x": "y"})
    assert fake.objects[pod_path("a")]["metadata"]["annotations"] == {}


async def test_a_patch_of_a_pod_that_is_gone_is_a_conflict(fake: FakeApi, api: Api) -> None:
    pod = pod_view(fake.put(pod_path("a"), a_pod("a")))
    fake.remove(pod_path("a"))
    with pytest.raises(Conflict):
        await KubernetesCluster(api).patch_pod(pod, annotations={"x": "y"})


async def test_a_delete_takes_the_pod_that_was_meant_and_no_other(fake: FakeApi, api: Api) -> None:
    cluster = KubernetesCluster(api)
    meant = pod_view(fake.put(pod_path("a"), a_pod("a", uid="old")))
    fake.put(pod_path("a"), a_pod("a", uid="new"))
    await cluster.delete_pod(meant)
    assert pod_path("a") in fake.objects
    await cluster.delete_pod(pod_view(fake.objects[pod_path("a")]))
    assert pod_path("a") not in fake.objects
    await cluster.delete_pod(meant)


async def test_a_pod_that_a_delete_made_terminating_is_seen_before_the_watch_tells(fake: FakeApi, api: Api) -> None:
    seen: list[PodView] = []
    cluster = KubernetesCluster(api, on_pod=lambda document: seen.append(pod_view(document)))
    fake.graceful = True
    await cluster.delete_pod(pod_view(fake.put(pod_path("a"), a_pod("a"))))
    fake.graceful = False
    await cluster.delete_pod(pod_view(fake.put(pod_path("b"), a_pod("b"))))
    assert [(pod.name, pod.terminating) for pod in seen] == [("a", True)]


async def test_a_delete_that_is_not_allowed_says_so(fake: FakeApi, api: Api) -> None:
    pod = pod_view(fake.put(pod_path("a"), a_pod("a")))
    fake.refuse = lambda method, _path: 403 if method == "DELETE" else None
    with pytest.raises(Refused, match="403"):
        await KubernetesCluster(api).delete_pod(pod)


async def test_only_successful_writes_are_counted(fake: FakeApi) -> None:
    counted: list[tuple[str, str]] = []
    async with serving(fake):
        info = kopf.ConnectionInfo(server=fake.url)
        api = Api(info, on_write=lambda verb, resource: counted.append((verb, resource)))
        cluster = KubernetesCluster(api)
        pod = pod_view(fake.put(pod_path("a"), a_pod("a")))
        await cluster.patch_pod(pod, annotations={"x": "y"})
        await cluster.write_status(WORKLOAD, {"phase": "Stable"})
        fake.remove(pod_path("a"))
        with pytest.raises(Conflict):
            await cluster.patch_pod(pod, annotations={"x": "y"})
        await api.close()
    assert counted == [("patch", "pods"), ("create", "drains"), ("patch", "drains/status")]


async def test_unlabelled_pods_are_those_of_the_workload_alone(fake: FakeApi, api: Api) -> None:
    bare = {"pod-template-hash": "abc"}
    fake.put(pod_path("labelled"), a_pod("labelled"))
    fake.put(pod_path("bare"), a_pod("bare", labels=bare))
    fake.put(pod_path("foreign"), a_pod("foreign", labels=bare, owner="set-9"))
    fake.put(pod_path("away", "other"), a_pod("away", labels=bare, namespace="other"))
    found = await KubernetesCluster(api).unlabelled_pods(WORKLOAD)
    assert [pod.name for pod in found] == ["bare"]


class TestStatus:
    async def test_the_drain_object_is_made_first_and_belongs_to_the_workload(self, fake: FakeApi, api: Api) -> None:
        await KubernetesCluster(api).write_status(WORKLOAD, {"phase": "Stable"})
        drain = fake.objects[DRAIN]
        assert drain["status"] == {"phase": "Stable"}
        assert drain["metadata"]["ownerReferences"] == [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "orders", "uid": "uid-orders"}
        ]

    async def test_an_existing_one_costs_one_write(self, fake: FakeApi, api: Api) -> None:
        cluster = KubernetesCluster(api)
        await cluster.write_status(WORKLOAD, {"phase": "Stable", "deadline": "x"})
        before = len(fake.writes())
        await cluster.write_status(WORKLOAD, {"phase": "RollingOut", "deadline": None})
        assert fake.writes()[before:] == [("PATCH", f"{DRAIN}/status")]
        assert await cluster.read_status(WORKLOAD.key) == {"phase": "RollingOut"}

    async def test_removing_what_is_not_there_is_no_error(self, fake: FakeApi, api: Api) -> None:
        cluster = KubernetesCluster(api)
        await cluster.write_status(WORKLOAD, {"phase": "Stable"})
        await cluster.remove_status(WORKLOAD.key)
        await cluster.remove_status(WORKLOAD.key)
        assert await cluster.read_status(WORKLOAD.key) is None


class TestEvents:
    async def test_an_event_is_about_the_workload(self, fake: FakeApi, api: Api) -> None:
        await KubernetesCluster(api).post_event(WORKLOAD, "DrainStarted", "2 pods drain", warning=False)
        (event,) = [document for path, document in fake.objects.items() if "/events/" in path]
        assert event["involvedObject"]["uid"] == "uid-orders"
        assert (event["type"], event["reason"], event["message"]) == ("Normal", "DrainStarted", "2 pods drain")

    async def test_a_namespace_that_ends_takes_none_and_that_is_fine(self, fake: FakeApi, api: Api) -> None:
        fake.refuse = lambda method, _path: 403 if method == "POST" else None
        await KubernetesCluster(api).post_event(WORKLOAD, "DrainStarted", "x", warning=True)
        assert not fake.objects


def a_review(**status: Any) -> dict[str, Any]:
    user = {
        "username": "system:serviceaccount:shop:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["orders-1"],
            "authentication.kubernetes.io/pod-uid": ["uid-1"],
        },
    }
    return {"status": {"authenticated": True, "audiences": ["ebbtide"], "user": user, **status}}


class TestTokens:
    async def test_a_pods_token_says_who_it_is(self, fake: FakeApi, api: Api) -> None:
        asked: list[dict[str, Any]] = []

        def review(body: dict[str, Any]) -> dict[str, Any]:
            asked.append(body)
            return a_review()

        fake.answers[REVIEWS] = review
        identity = await KubernetesCluster(api).authenticate("secret")
        assert identity is not None
        assert (identity.namespace, identity.name, identity.uid) == ("shop", "orders-1", "uid-1")
        assert asked[0]["spec"] == {"token": "secret", "audiences": ["ebbtide"]}

    @pytest.mark.parametrize(
        "status",
        [
            {"authenticated": False},
            {"audiences": []},
            {"audiences": ["https://kubernetes.default.svc"]},
            {"user": {"username": "system:serviceaccount:shop:default", "extra": {}}},
            {"user": {"username": "somebody", "extra": a_review()["status"]["user"]["extra"]}},
        ],
    )
    async def test_any_other_token_is_nobodys(self, fake: FakeApi, api: Api, status: dict[str, Any]) -> None:
        fake.answers[REVIEWS] = lambda _body: a_review(**status)
        assert await KubernetesCluster(api).authenticate("secret") is None

    async def test_an_api_server_that_fails_is_not_a_wrong_token(self, fake: FakeApi, api: Api) -> None:
        fake.refuse = lambda _method, path: 500 if path == REVIEWS else None
        with pytest.raises(ApiError):
            await KubernetesCluster(api).authenticate("secret")


class TestWebhooks:
    paths = (
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/ebbtide",
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/ebbtide",
    )

    def configure(self, fake: FakeApi) -> None:
        for path in self.paths:
            fake.put(path, {"metadata": {"name": "ebbtide"}, "webhooks": [{"name": "x", "clientConfig": {"url": "y"}}]})

    async def test_the_authority_is_written_where_it_is_missing_and_only_there(self, fake: FakeApi, api: Api) -> None:
        self.configure(fake)
        cluster = KubernetesCluster(api)
        assert await cluster.trusts("ebbtide", b"PEM", mend=True)
        for path in self.paths:
            config = fake.objects[path]["webhooks"][0]["clientConfig"]
            assert config == {"url": "y", "caBundle": b64encode(b"PEM").decode()}
        before = fake.writes()
        assert await cluster.trusts("ebbtide", b"PEM", mend=True)
        assert fake.writes() == before

    async def test_a_replica_that_may_not_write_says_whether_the_authority_is_there(
        self, fake: FakeApi, api: Api
    ) -> None:
        self.configure(fake)
        cluster = KubernetesCluster(api)
        assert not await cluster.trusts("ebbtide", b"PEM", mend=False)
        assert fake.writes() == []
        await cluster.trusts("ebbtide", b"PEM", mend=True)
        assert await cluster.trusts("ebbtide", b"PEM", mend=False)
        assert not await cluster.trusts("ebbtide", b"another", mend=False)

    async def test_configurations_that_are_not_there_are_left_alone(self, fake: FakeApi, api: Api) -> None:
        assert await KubernetesCluster(api).trusts("ebbtide", b"PEM", mend=True)
        assert fake.writes() == []

    async def test_a_configuration_that_somebody_else_writes_meanwhile_is_looked_at_again(
        self, fake: FakeApi, api: Api
    ) -> None:
        self.configure(fake)
        fake.refuse = lambda method, _path: 409 if method == "PUT" else None
        assert not await KubernetesCluster(api).trusts("ebbtide", b"PEM", mend=True)


class TestSecrets:
    path = "/api/v1/namespaces/ebbtide-system/secrets/ebbtide-ca"

    async def test_a_secret_comes_back_as_it_was_written(self, fake: FakeApi, api: Api) -> None:
        secrets = KubernetesSecrets(api, "ebbtide-system")
        assert await secrets.get("ebbtide-ca") is None
        await secrets.create("ebbtide-ca", {"ca.crt": b64encode(b"x").decode()}, "ebbtide.dev/certificate")
        secret = await secrets.get("ebbtide-ca")
        assert secret is not None
        assert (secret.data, secret.owned) == ({"ca.crt": b"x"}, True)

    async def test_what_somebody_else_wrote_first_is_a_conflict(self, fake: FakeApi, api: Api) -> None:
        secrets = KubernetesSecrets(api, "ebbtide-system")
        old = fake.put(self.path, {"metadata": {"name": "ebbtide-ca"}, "data": {}})
        with pytest.raises(Conflict):
            await secrets.create("ebbtide-ca", {}, "label")
        fake.put(self.path, {"metadata": {"name": "ebbtide-ca"}, "data": {"a": "eA=="}})
        with pytest.raises(Conflict):
            await secrets.replace("ebbtide-ca", {}, "label", old["metadata"]["resourceVersion"])
        secret = await secrets.get("ebbtide-ca")
        assert secret is not None
        assert not secret.owned


async def test_a_rotated_token_is_read_again(fake: FakeApi, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(module, "TOKEN_AGE_S", -1.0)
    (tmp_path / "token").write_text("first\n")
    fake.token = "first"
    async with serving(fake):
        authority = tmp_path / "ca.crt"
        authority.write_text(authority_pem())
        api = Api(kopf.ConnectionInfo(server=fake.url, ca_path=str(authority), token="first"))
        await api.get("/api/v1/pods")
        fake.token = "second"
        (tmp_path / "token").write_text("second\n")
        await api.get("/api/v1/pods")
        await api.close()


def authority_pem() -> str:
    return make_authority("test", dt.datetime.now(dt.UTC)).certificate.decode()
