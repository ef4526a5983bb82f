import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide import environment
from ebbtide.settings import Settings
from ebbtide_operator.core import names
from ebbtide_operator.core.floor import FloorEndpoint, FloorPatch, floor_patch
from ebbtide_operator.core.model import Mode, Policy, WorkloadKey

ORDERS = WorkloadKey("shop", "deployment", "orders")
POLICY = Policy(mode=Mode.MANAGED, drain_timeout_s=300, cancel_grace_s=10, quiesce_s=5)
ENDPOINT = FloorEndpoint(
    ("https://ebbtide.ebbtide-system.svc:443",), "-----BEGIN CERTIFICATE-----", "/ebbtide/v1", "t0"
)


def apply(document: Any, operations: Sequence[Mapping[str, Any]]) -> Any:
    """Apply the `add` operations of a JSON patch (RFC 6902)."""
    document = copy.deepcopy(document)
    for operation in operations:
        assert operation["op"] == "add"
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        target = document
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        value = copy.deepcopy(operation["value"])
        if isinstance(target, list):
            target.append(value) if last == "-" else target.insert(int(last), value)
        else:
            target[last] = value
    return document


def a_pod(**container: Any) -> dict[str, Any]:
    return {"metadata": {"name": "orders-1"}, "spec": {"containers": [{"name": "app", "image": "orders", **container}]}}


def floored(pod: dict[str, Any], policy: Policy = POLICY) -> dict[str, Any]:
    result: dict[str, Any] = apply(pod, floor_patch(pod, ORDERS, policy, ENDPOINT).operations)
    return result


def variables(pod: Mapping[str, Any], index: int = 0) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][index]["env"]}


def test_the_library_reads_back_what_the_webhook_wrote() -> None:
    pod = floored(a_pod())
    environ = variables(pod) | {environment.POD_UID: "u", environment.POD_NAMESPACE: "shop"}
    settings = Settings.from_env(environ)
    assert settings.problems == ()
    assert settings.has_store
    assert settings.workload == "deployment/orders"
    assert settings.durations.budget_s == POLICY.budget_s
    assert settings.grace_period_s == 320


def test_prestop_calls_the_library_with_the_pods_own_token() -> None:
    hook = floored(a_pod())["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]
    assert hook["path"] == "/drain?start=prestop&wait=316"
    assert hook["port"] == 8471
    assert hook["httpHeaders"] == [{"name": "Authorization", "value": "Bearer t0"}]


@pytest.mark.parametrize(("own", "grace_s"), [(None, 320), (30, 320), (600, 600)])
def test_the_grace_period_is_only_ever_lengthened(own: int | None, grace_s: int) -> None:
    pod = a_pod()
    if own is not None:
        pod["spec"]["terminationGracePeriodSeconds"] = own
    assert floored(pod)["spec"]["terminationGracePeriodSeconds"] == grace_s


def test_a_users_own_prestop_is_kept_and_reported() -> None:
    own = {"preStop": {"exec": {"command": ["sleep", "5"]}}}
    pod = a_pod(lifecycle=own)
    patch = floor_patch(pod, ORDERS, POLICY, ENDPOINT)
    assert apply(pod, patch.operations)["spec"]["containers"][0]["lifecycle"] == own
    assert "the container's own is kept" in patch.notes[0]
    assert patch.notes[0] in apply(pod, patch.operations)["metadata"]["annotations"][names.FLOOR]


@pytest.mark.parametrize(
    ("hook", "own", "grace_s", "left_s"),
    [
        ({"sleep": {"seconds": 60}}, 90, 380, 320),
        ({"sleep": {"seconds": 60}}, 600, 600, 540),
        ({"exec": {"command": ["sleep", "20"]}}, None, 350, 320),
        ({"httpGet": {"path": "/stop", "port": 80}}, 90, 410, 320),
    ],
)
def test_a_users_own_prestop_takes_nothing_of_the_drains_time(
    hook: dict[str, Any], own: int | None, grace_s: int, left_s: int
) -> None:
    pod = a_pod(lifecycle={"preStop": hook})
    if own is not None:
        pod["spec"]["terminationGracePeriodSeconds"] = own
    result = floored(pod)
    assert result["spec"]["terminationGracePeriodSeconds"] == grace_s
    assert variables(result)[environment.GRACE_PERIOD] == str(left_s), "what SIGTERM finds"


def test_a_poststart_hook_stays_beside_ours() -> None:
    pod = floored(a_pod(lifecycle={"postStart": {"exec": {"command": ["true"]}}}))
    assert set(pod["spec"]["containers"][0]["lifecycle"]) == {"postStart", "preStop"}


def test_a_users_own_variables_win() -> None:
    pod = floored(a_pod(env=[{"name": environment.DRAIN_TIMEOUT, "value": "7"}, {"name": "PATH", "value": "/bin"}]))
    assert variables(pod)[environment.DRAIN_TIMEOUT] == "7"
    assert variables(pod)["PATH"] == "/bin"
    assert len(variables(pod)) == len(pod["spec"]["containers"][0]["env"])


def test_an_admin_server_on_loopback_gets_no_prestop_that_cannot_reach_it() -> None:
    pod = a_pod(env=[{"name": environment.ADMIN_ADDRESS, "value": "127.0.0.1:9000"}])
    patch = floor_patch(pod, ORDERS, POLICY, ENDPOINT)
    assert "lifecycle" not in apply(pod, patch.operations)["spec"]["containers"][0]
    assert "does not listen on the pod's address" in patch.notes[0]


def test_the_container_that_was_named_is_the_one() -> None:
    pod = a_pod()
    pod["spec"]["containers"].append({"name": "worker"})
    policy = Policy(mode=Mode.MANAGED, container="worker")
    result = floored(pod, policy)
    assert "env" not in result["spec"]["containers"][0]
    assert environment.POD_UID in variables(result, 1)


def test_a_container_that_is_not_there_is_named_and_the_pod_is_still_made() -> None:
    pod = a_pod()
    patch = floor_patch(pod, ORDERS, Policy(mode=Mode.MANAGED, container="wroker"), ENDPOINT)
    assert "there is no container 'wroker'; the pod has app" in patch.notes[0]
    assert apply(pod, patch.operations)["spec"] == pod["spec"]


@pytest.mark.parametrize(("mode", "label"), [(Mode.MANAGED, "true"), (Mode.FLOOR, "floor")])
def test_the_label_says_how_far_the_workload_opted_in(mode: Mode, label: str) -> None:
    assert floored(a_pod(), Policy(mode=mode))["metadata"]["labels"] == {names.MANAGED: label}


def test_an_unmanaged_pod_is_left_alone() -> None:
    assert floor_patch(a_pod(), ORDERS, Policy(), ENDPOINT) == FloorPatch(())


lists: st.SearchStrategy[Any] = (
    st.none() | st.just([]) | st.just([{"name": "data", "mountPath": "/data", "value": "x", "emptyDir": {}}])
)


@given(
    env=lists,
    mounts=lists,
    volumes=lists,
    labels=st.none() | st.just({"app": "orders"}),
    grace=st.none() | st.integers(0, 1000),
    quiesce_s=st.floats(0, 300),
    lifecycle=st.none()
    | st.sampled_from([{"sleep": {"seconds": 7}}, {"exec": {"command": ["true"]}}]).map(lambda one: {"preStop": one}),
)
def test_a_second_round_changes_nothing(
    env: Any, mounts: Any, volumes: Any, labels: Any, grace: int | None, quiesce_s: float, lifecycle: Any
) -> None:
    pod = a_pod()
    container = pod["spec"]["containers"][0]
    for target, field, value in (
        (container, "env", env),
        (container, "lifecycle", lifecycle),
        (container, "volumeMounts", mounts),
        (pod["spec"], "volumes", volumes),
        (pod["spec"], "terminationGracePeriodSeconds", grace),
        (pod["metadata"], "labels", labels),
    ):
        if value is not None:
            target[field] = copy.deepcopy(value)
    policy = Policy(mode=Mode.MANAGED, quiesce_s=quiesce_s)
    once = floored(pod, policy)
    again = FloorEndpoint(ENDPOINT.endpoints, ENDPOINT.ca_pem, ENDPOINT.prefix, "another token")
    assert floor_patch(once, ORDERS, policy, again).operations == ()
