from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.cluster.workloads import Listing, Workloads, deployment_view, rolling_step
from ebbtide_operator.core.model import Mode, Policy, WorkloadKey

ORDERS = WorkloadKey("shop", "deployment", "orders")
MANAGED = {"ebbtide.dev/drain": "managed"}


def a_deployment(
    version: int = 1, *, uid: str = "d", replicas: int = 3, annotations: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "orders",
            "namespace": "shop",
            "uid": uid,
            "resourceVersion": str(version),
            "generation": 4,
            "annotations": MANAGED if annotations is None else annotations,
        },
        "spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate"}, **spec},
        "status": {"observedGeneration": 3},
    }


def a_replica_set(
    name: str = "orders-1",
    version: int = 1,
    *,
    owner: str = "d",
    replicas: int = 3,
    revision: str = "1",
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "annotations": {
                "deployment.kubernetes.io/revision": revision,
                **(MANAGED if annotations is None else annotations),
            },
            "ownerReferences": [{"kind": "Deployment", "name": "orders", "uid": owner, "controller": True}],
        },
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas},
    }


class Cache:
    def __init__(self) -> None:
        self.told: list[WorkloadKey] = []
        self.workloads = Workloads(Policy(drain_timeout_s=60), self.told.append)

    def deployment(self, document: dict[str, Any], *, deleted: bool = False) -> None:
        self.workloads.take_deployment(document, deleted=deleted)

    def replica_set(self, document: dict[str, Any], *, deleted: bool = False) -> None:
        self.workloads.take_replica_set(document, deleted=deleted)


@pytest.fixture
def cache() -> Cache:
    return Cache()


def test_a_workload_has_its_replica_sets(cache: Cache) -> None:
    cache.replica_set(a_replica_set("orders-2", replicas=1, revision="2"))
    cache.deployment(a_deployment())
    cache.replica_set(a_replica_set("orders-1", replicas=2))
    cache.replica_set(a_replica_set("other-1", owner="elsewhere"))
    workload = cache.workloads.get(ORDERS)
    assert workload is not None
    assert [(one.name, one.replicas, one.revision) for one in workload.sets] == [
        ("orders-1", 2, "1"),
        ("orders-2", 1, "2"),
    ]
    assert (workload.generation, workload.observed_generation) == (4, 3)
    assert workload.policy.mode is Mode.MANAGED
    assert cache.workloads.owning("uid-orders-2") == workload


def test_only_changes_are_told(cache: Cache) -> None:
    cache.deployment(a_deployment(1))
    cache.deployment(a_deployment(2))
    cache.replica_set(a_replica_set(version=3))
    cache.replica_set(a_replica_set(version=4))
    assert cache.told == [ORDERS, ORDERS]
    cache.deployment(a_deployment(5, replicas=5))
    assert cache.told == [ORDERS, ORDERS, ORDERS]


def test_an_older_state_is_ignored(cache: Cache) -> None:
    cache.deployment(a_deployment(9, replicas=9))
    cache.deployment(a_deployment(5, replicas=5))
    workload = cache.workloads.get(ORDERS)
    assert workload is not None
    assert workload.replicas == 9


def test_workloads_that_never_opted_in_are_silent(cache: Cache) -> None:
    cache.deployment(a_deployment(annotations={}))
    cache.replica_set(a_replica_set(annotations={}))
    assert cache.told == []
    assert cache.workloads.keys() == []


def test_one_that_opts_out_is_told_and_still_looked_at(cache: Cache) -> None:
    cache.deployment(a_deployment(1))
    cache.deployment(a_deployment(2, annotations={}))
    assert cache.told == [ORDERS, ORDERS]
    assert cache.workloads.keys() == [ORDERS]


def test_one_that_opted_out_unseen_is_told_when_something_of_ours_is_left(cache: Cache) -> None:
    cache.deployment(a_deployment(annotations={}))
    cache.workloads.concern(ORDERS)
    cache.workloads.concern(ORDERS)
    assert cache.told == [ORDERS]
    assert cache.workloads.keys() == [ORDERS]


def test_a_wrong_annotation_is_kept_as_a_problem(cache: Cache) -> None:
    cache.deployment(a_deployment(annotations={**MANAGED, "ebbtide.dev/drain-timeout": "soon"}))
    workload = cache.workloads.get(ORDERS)
    assert workload is not None
    assert [problem.annotation for problem in workload.problems] == ["ebbtide.dev/drain-timeout"]
    assert cache.told == [ORDERS]


def test_deleted_ones_are_forgotten(cache: Cache) -> None:
    cache.deployment(a_deployment())
    cache.replica_set(a_replica_set())
    cache.replica_set(a_replica_set(), deleted=True)
    workload = cache.workloads.get(ORDERS)
    assert workload is not None
    assert workload.sets == ()
    cache.deployment(a_deployment(), deleted=True)
    assert cache.workloads.get(ORDERS) is None
    assert cache.workloads.keys() == []
    assert cache.told == [ORDERS] * 4


def test_the_end_of_the_old_one_of_a_name_does_not_hide_the_new_one(cache: Cache) -> None:
    cache.deployment(a_deployment(1, uid="old"))
    cache.deployment(a_deployment(2, uid="new", replicas=7))
    cache.deployment(a_deployment(1, uid="old"), deleted=True)
    workload = cache.workloads.get(ORDERS)
    assert workload is not None
    assert (workload.uid, workload.replicas) == ("new", 7)


def orphaned(document: dict[str, Any]) -> dict[str, Any]:
    return document | {"metadata": document["metadata"] | {"ownerReferences": []}}


def test_a_replica_set_that_its_deployment_gave_up_is_forgotten(cache: Cache) -> None:
    cache.deployment(a_deployment())
    cache.replica_set(a_replica_set(version=1))
    cache.replica_set(orphaned(a_replica_set(version=3)))
    cache.replica_set(a_replica_set(version=2))
    workload = cache.workloads.get(ORDERS)
    assert workload is not None
    assert workload.sets == ()
    assert cache.workloads.owning("uid-orders-1") is None
    assert cache.told == [ORDERS] * 3
    cache.replica_set(a_replica_set(version=4))
    assert cache.workloads.owning("uid-orders-1") is not None, "adopted again"


def test_a_replica_set_that_another_deployment_adopts_is_no_longer_the_first_ones(cache: Cache) -> None:
    cache.deployment(a_deployment())
    cache.replica_set(a_replica_set(version=1))
    cache.replica_set(a_replica_set(version=2, owner="another"))
    workload = cache.workloads.get(ORDERS)
    assert workload is not None
    assert workload.sets == ()
    cache.replica_set(a_replica_set(version=2, owner="another"), deleted=True)
    assert cache.workloads.get(ORDERS) == workload


class TestLists:
    def take(self, cache: Cache, deployments: list[dict[str, Any]], sets: list[dict[str, Any]], version: int) -> None:
        cache.workloads.take_lists(Listing(deployments, version), Listing(sets, version))

    def test_what_is_not_listed_was_deleted_unseen(self, cache: Cache) -> None:
        cache.deployment(a_deployment(1))
        cache.replica_set(a_replica_set("orders-1", 2))
        cache.replica_set(a_replica_set("orders-2", 3))
        cache.workloads.expect_lists()
        self.take(cache, [a_deployment(1)], [a_replica_set("orders-2", 3)], 10)
        workload = cache.workloads.get(ORDERS)
        assert workload is not None
        assert [one.name for one in workload.sets] == ["orders-2"]
        self.take(cache, [], [], 11)
        assert cache.workloads.get(ORDERS) is None

    def test_a_replica_set_that_was_given_up_unseen_is_forgotten(self, cache: Cache) -> None:
        cache.deployment(a_deployment(1))
        cache.replica_set(a_replica_set(version=2))
        cache.workloads.expect_lists()
        self.take(cache, [a_deployment(1)], [orphaned(a_replica_set(version=3))], 10)
        workload = cache.workloads.get(ORDERS)
        assert workload is not None
        assert workload.sets == ()

    def test_what_was_made_after_the_list_stays(self, cache: Cache) -> None:
        cache.workloads.expect_lists()
        cache.deployment(a_deployment(12))
        self.take(cache, [], [], 10)
        assert cache.workloads.get(ORDERS) is not None

    def test_what_was_deleted_while_the_list_was_read_stays_away(self, cache: Cache) -> None:
        cache.workloads.expect_lists()
        cache.deployment(a_deployment(3))
        cache.deployment(a_deployment(3), deleted=True)
        self.take(cache, [a_deployment(3)], [], 10)
        assert cache.workloads.get(ORDERS) is None

    def test_an_event_that_came_first_beats_the_list(self, cache: Cache) -> None:
        cache.workloads.expect_lists()
        cache.deployment(a_deployment(12, replicas=9))
        self.take(cache, [a_deployment(3, replicas=2)], [], 10)
        workload = cache.workloads.get(ORDERS)
        assert workload is not None
        assert workload.replicas == 9


class TestNewPods:
    def test_the_deployment_decides(self, cache: Cache) -> None:
        cache.deployment(a_deployment(annotations={**MANAGED, "ebbtide.dev/drain-timeout": "7m"}))
        cache.replica_set(a_replica_set())
        found = cache.workloads.for_new_pod("uid-orders-1")
        assert found is not None
        assert found.policy.drain_timeout_s == 420

    def test_the_copy_on_the_replica_set_serves_while_the_deployment_is_not_here_yet(self, cache: Cache) -> None:
        cache.replica_set(a_replica_set())
        found = cache.workloads.for_new_pod("uid-orders-1")
        assert found is not None
        assert (found.key, found.policy.mode) == (ORDERS, Mode.MANAGED)

    def test_the_copy_serves_while_the_deployment_is_behind(self, cache: Cache) -> None:
        opted_out = a_deployment(annotations={"deployment.kubernetes.io/revision": "1"})
        cache.deployment(opted_out)
        cache.replica_set(a_replica_set(revision="2"))
        found = cache.workloads.for_new_pod("uid-orders-1")
        assert found is not None
        assert found.policy.mode is Mode.MANAGED

    def test_a_copy_that_stayed_behind_when_the_workload_opted_out_counts_for_nothing(self, cache: Cache) -> None:
        cache.deployment(a_deployment(annotations={"deployment.kubernetes.io/revision": "1"}))
        cache.replica_set(a_replica_set(revision="1"))
        found = cache.workloads.for_new_pod("uid-orders-1")
        assert found is not None
        assert found.policy.mode is Mode.OFF

    def test_a_replica_set_that_is_not_known_is_read_from_its_document(self, cache: Cache) -> None:
        assert cache.workloads.for_new_pod("uid-orders-1") is None
        found = cache.workloads.for_new_pod_of(a_replica_set())
        assert found is not None
        assert found.policy.mode is Mode.MANAGED
        alone = a_replica_set()
        alone["metadata"]["ownerReferences"] = []
        assert cache.workloads.for_new_pod_of(alone) is None


@pytest.mark.parametrize(
    ("surge", "unavailable", "replicas", "expected"),
    [
        ("25%", "25%", 10, (3, 2)),
        ("25%", "25%", 1, (1, 0)),
        (2, 1, 10, (2, 1)),
        (0, 0, 10, (0, 1)),
        ("0%", "1%", 10, (0, 1)),
        ("100%", "0%", 3, (3, 0)),
    ],
)
def test_a_rolling_step_is_resolved_as_kubernetes_does(
    surge: int | str, unavailable: int | str, replicas: int, expected: tuple[int, int]
) -> None:
    assert rolling_step(surge, unavailable, replicas) == expected


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 1000))
def test_a_rolling_step_always_moves(surge: int, unavailable: int, replicas: int) -> None:
    more, fewer = rolling_step(f"{surge}%", f"{unavailable}%", replicas)
    assert more + fewer >= 1
    assert 100 * (more - 1) < surge * replicas or more == 0
    assert fewer <= max(1, unavailable * replicas / 100)


def test_a_deployment_that_recreates_may_lose_all_at_once() -> None:
    view = deployment_view(a_deployment(strategy={"type": "Recreate"}, replicas=4), Policy())
    assert (view.max_surge, view.max_unavailable) == (0, 4)
