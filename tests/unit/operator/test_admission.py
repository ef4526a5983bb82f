import asyncio
import copy
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core import names
from ebbtide_operator.core.floor import FloorEndpoint
from ebbtide_operator.core.model import PodView, Policy
from ebbtide_operator.core.verdict import HoldContext
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.serve import admission as module
from ebbtide_operator.serve import review as codec
from ebbtide_operator.serve.admission import CREATE, DELETE, Admission
from ebbtide_operator.serve.app import MAX_BODY
from tests.unit.operator.fake_api import a_pod
from tests.unit.operator.test_workloads import a_deployment, a_replica_set

NOW = 1795521700.0
CONTROLLER = names.REPLICASET_CONTROLLER


class Scene:
    """An admission handler with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.workloads = Workloads(Policy(), lambda _key: None)
        self.context = HoldContext(managed=True)
        self.held: list[tuple[str, str]] = []
        self.lookups: list[str] = []
        self.replica_sets: dict[str, dict[str, Any]] = {}
        self.lookup_hangs = False
        self.lookup_error: Exception | None = None
        self.context_error: Exception | None = None
        self.tokens = 0
        self.client: TestClient[web.Request, web.Application]

    async def replica_set(self, namespace: str, name: str) -> dict[str, Any] | None:
        self.lookups.append(name)
        if self.lookup_hangs:
            await asyncio.Event().wait()
        if self.lookup_error is not None:
            raise self.lookup_error
        return self.replica_sets.get(name)

    def endpoint(self) -> FloorEndpoint:
        self.tokens += 1
        return FloorEndpoint(("https://ebbtide.svc:443",), "PEM", "/ebbtide/v1", f"token-{self.tokens}")

    def context_of(self, _pod: PodView) -> HoldContext:
        if self.context_error is not None:
            raise self.context_error
        return self.context

    async def ask(self, path: str, **request: Any) -> dict[str, Any]:
        review = {
            "apiVersion": codec.API_VERSION,
            "kind": "AdmissionReview",
            "request": {"uid": "review-1", "namespace": "shop", "userInfo": {"username": CONTROLLER}, **request},
        }
        async with self.client.post(path, json=review) as answer:
            assert answer.status == 200
            document = await answer.json()
        assert (document["apiVersion"], document["kind"]) == (codec.API_VERSION, "AdmissionReview")
        response: dict[str, Any] = document["response"]
        assert response["uid"] == "review-1"
        return response

    async def create(self, pod: dict[str, Any]) -> tuple[bool, dict[str, Any] | None]:
        """Return whether the pod passed, and what it became where it was changed."""
        response = await self.ask(CREATE, object=pod, operation="CREATE")
        if "patch" not in response:
            return response["allowed"], None
        assert response["patchType"] == "JSONPatch"
        return response["allowed"], patched(pod, json.loads(b64decode(response["patch"])))

    async def delete(self, pod: dict[str, Any], **request: Any) -> dict[str, Any]:
        return await self.ask(DELETE, oldObject=pod, operation="DELETE", **request)

    def count(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0


def patched(document: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """Apply the `add` operations of a JSON patch."""
    result = copy.deepcopy(document)
    for operation in operations:
        assert operation["op"] == "add"
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].strip("/").split("/")
        ]
        target: Any = result
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if isinstance(target, list):
            target.append(operation["value"])
        else:
            target[last] = operation["value"]
    return result


def a_new_pod(owner: str = "orders-1") -> dict[str, Any]:
    reference = {"kind": "ReplicaSet", "name": owner, "uid": f"uid-{owner}", "controller": True}
    return {
        "metadata": {"generateName": f"{owner}-", "labels": {"app": "orders"}, "ownerReferences": [reference]},
        "spec": {"containers": [{"name": "app", "image": "x"}], "terminationGracePeriodSeconds": 30},
    }


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    admission = Admission(
        scene.workloads,
        scene,
        scene.endpoint,
        scene.context_of,
        lambda pod, user: scene.held.append((pod.name, user)),
        scene.metrics,
        lambda: NOW,
    )
    app = web.Application(client_max_size=MAX_BODY)
    app.add_routes(admission.routes())
    async with TestClient(TestServer(app)) as client:
        scene.client = client
        yield scene


class TestCreation:
    async def test_a_pod_of_a_managed_workload_gets_the_floor(self, scene: Scene) -> None:
        scene.workloads.take_deployment(a_deployment(), deleted=False)
        scene.workloads.take_replica_set(a_replica_set(), deleted=False)
        allowed, pod = await scene.create(a_new_pod())
        assert allowed
        assert pod is not None
        assert pod["metadata"]["labels"] == {"app": "orders", names.MANAGED: "true"}
        assert pod["spec"]["terminationGracePeriodSeconds"] > 60
        variables = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert variables["EBBTIDE_WORKLOAD"] == "deployment/orders"
        assert variables["EBBTIDE_ADMIN_TOKEN"] == "token-1"
        assert scene.lookups == []
        assert scene.count("ebbtide_floor_patches_total", result="complete") == 1

    async def test_each_pod_gets_a_token_of_its_own(self, scene: Scene) -> None:
        scene.workloads.take_replica_set(a_replica_set(), deleted=False)
        seen = set()
        for _ in range(3):
            _, pod = await scene.create(a_new_pod())
            assert pod is not None
            env = pod["spec"]["containers"][0]["env"]
            seen |= {one["value"] for one in env if one["name"] == "EBBTIDE_ADMIN_TOKEN"}
        assert len(seen) == 3

    async def test_a_pod_of_an_unmanaged_workload_comes_as_it_is_and_costs_no_request(self, scene: Scene) -> None:
        scene.workloads.take_deployment(a_deployment(annotations={}), deleted=False)
        scene.workloads.take_replica_set(a_replica_set(annotations={}), deleted=False)
        assert await scene.create(a_new_pod()) == (True, None)
        assert scene.lookups == []

    async def test_a_wrong_annotation_leaves_the_pod_as_it_is(self, scene: Scene) -> None:
        wrong = {names.DRAIN: "managed", names.DRAIN_TIMEOUT: "soon"}
        scene.workloads.take_deployment(a_deployment(annotations=wrong), deleted=False)
        scene.workloads.take_replica_set(a_replica_set(annotations=wrong), deleted=False)
        assert await scene.create(a_new_pod()) == (True, None)

    async def test_a_replica_set_that_is_not_known_yet_is_looked_up_once(self, scene: Scene) -> None:
        scene.replica_sets["orders-1"] = a_replica_set()
        allowed, pod = await scene.create(a_new_pod())
        assert allowed
        assert pod is not None
        assert scene.lookups == ["orders-1"]

    async def test_a_lookup_that_hangs_does_not_keep_the_pod(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LOOKUP_S", 0.02)
        scene.lookup_hangs = True
        assert await scene.create(a_new_pod()) == (True, None)
        assert scene.count("ebbtide_floor_patches_total", result="lookup_failed") == 1

    async def test_a_lookup_that_fails_does_not_keep_the_pod(self, scene: Scene) -> None:
        scene.lookup_error = ConnectionError("refused")
        assert await scene.create(a_new_pod()) == (True, None)
        labels = {"webhook": "create", "verdict": "allow", "cause": "lookup_failed"}
        assert scene.count("ebbtide_admission_requests_total", **labels) == 1

    async def test_another_replica_set_of_the_same_name_is_not_believed(self, scene: Scene) -> None:
        scene.replica_sets["orders-1"] = {**a_replica_set(), "metadata": {**a_replica_set()["metadata"], "uid": "new"}}
        assert await scene.create(a_new_pod()) == (True, None)

    @pytest.mark.parametrize("owners", [[], [{"kind": "Job", "name": "j", "uid": "u", "controller": True}]])
    async def test_a_pod_without_a_replica_set_comes_as_it_is(self, scene: Scene, owners: list[Any]) -> None:
        pod = a_new_pod()
        pod["metadata"]["ownerReferences"] = owners
        assert await scene.create(pod) == (True, None)
        assert scene.lookups == []


class TestDeletion:
    async def test_a_working_pod_is_held_and_the_planner_is_told(self, scene: Scene) -> None:
        answer = await scene.delete(a_pod("a"))
        assert not answer["allowed"]
        assert answer["status"]["code"] == 429
        assert answer["status"]["message"].startswith("ebbtide: waits for a drain slot")
        assert scene.held == [("a", CONTROLLER)]
        labels = {"webhook": "delete", "verdict": "deny", "cause": "waiting"}
        assert scene.count("ebbtide_admission_requests_total", **labels) == 1

    async def test_a_draining_pod_is_held_with_the_reason(self, scene: Scene) -> None:
        scene.context = HoldContext(tasks=2, eta_s=7)
        answer = await scene.delete(
            a_pod(
                "a",
                annotations={
                    names.DRAINING_SINCE: "2026-11-24T12:00:01Z",
                    names.DRAIN_DEADLINE: "2026-11-24T13:00:00Z",
                },
            )
        )
        assert answer["status"]["message"] == "ebbtide: draining since 2026-11-24T12:00:01Z, 2 tasks left, about 7 s"

    async def test_a_released_pod_goes(self, scene: Scene) -> None:
        answer = await scene.delete(a_pod("a", annotations={names.RELEASED: "clean"}))
        assert answer["allowed"]
        assert scene.held == []

    async def test_a_pod_goes_at_its_deadline(self, scene: Scene) -> None:
        for deadline, allowed in (("2026-11-24T12:01:40.000Z", True), ("2026-11-24T12:01:40.001Z", False)):
            answer = await scene.delete(a_pod("a", annotations={names.DRAIN_DEADLINE: deadline}))
            assert answer["allowed"] is allowed

    async def test_a_person_is_never_refused(self, scene: Scene) -> None:
        assert (await scene.delete(a_pod("a"), userInfo={"username": "kim"}))["allowed"]

    async def test_force_is_never_refused(self, scene: Scene) -> None:
        assert (await scene.delete(a_pod("a"), options={"gracePeriodSeconds": 0}))["allowed"]
        assert not (await scene.delete(a_pod("a"), options={"gracePeriodSeconds": 30}))["allowed"]

    async def test_a_silent_leader_opens_and_is_counted(self, scene: Scene) -> None:
        scene.context = HoldContext(leader_silent_s=1000)
        assert (await scene.delete(a_pod("a")))["allowed"]
        assert scene.count("ebbtide_fail_open_total", cause="leader_silent") == 1

    async def test_a_dry_run_tells_nobody(self, scene: Scene) -> None:
        assert not (await scene.delete(a_pod("a"), dryRun=True))["allowed"]
        assert scene.held == []

    async def test_an_error_of_ours_lets_the_pod_go(self, scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
        scene.context_error = RuntimeError("broken")
        assert (await scene.delete(a_pod("a")))["allowed"]
        labels = {"webhook": "delete", "verdict": "allow", "cause": "error"}
        assert scene.count("ebbtide_admission_requests_total", **labels) == 1
        assert "broken" in caplog.text

    @pytest.mark.parametrize("pod", [{}, {"metadata": {"creationTimestamp": "x"}}, {"metadata": 5}, {"metadata": None}])
    async def test_a_pod_that_cannot_be_read_goes(self, scene: Scene, pod: dict[str, Any]) -> None:
        assert (await scene.delete(pod))["allowed"]


@pytest.mark.parametrize(
    ("body", "field"),
    [(b"", "not JSON"), (b"[]", "request"), (b"{}", "request"), (b'{"request": {}}', "request.uid")],
)
@pytest.mark.parametrize("path", [CREATE, DELETE])
async def test_what_is_no_review_is_refused_with_the_field_and_counted(
    scene: Scene, path: str, body: bytes, field: str
) -> None:
    async with scene.client.post(path, data=body) as answer:
        assert answer.status == 400
        assert field in await answer.text()
    labels = {"webhook": path.rpartition("/")[2], "verdict": "none", "cause": "bad_request"}
    assert scene.count("ebbtide_admission_requests_total", **labels) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(st.sampled_from(["uid", "object", "oldObject", "userInfo", "options", "namespace"]), json_values)
)
def test_no_request_body_breaks_the_codec(request: dict[str, Any]) -> None:
    try:
        review = codec.decode(json.dumps({"request": request}).encode())
    except codec.ReviewError:
        return
    assert review.uid == request["uid"]


async def test_no_field_of_a_request_makes_the_answer_fail(scene: Scene) -> None:
    for field in ("object", "oldObject", "userInfo", "options", "namespace"):
        values: list[Any] = [None, 5, "x", [], {}, {"metadata": {"ownerReferences": [{}]}}, {"spec": None}]
        for value in values:
            for path in (CREATE, DELETE):
                assert (await scene.ask(path, **{field: value}))["allowed"]
