"""kopf against a small API server: what it tells us, and that it writes nothing."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import kopf
import pytest

from ebbtide_operator import handlers
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core.model import Policy, WorkloadKey
from tests.unit.operator.fake_api import FakeApi, eventually, serving
from tests.unit.operator.test_workloads import a_deployment, a_replica_set

ORDERS = WorkloadKey("shop", "deployment", "orders")
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/orders"
REPLICA_SET = "/apis/apps/v1/namespaces/shop/replicasets/orders-1"
DRAIN = "/apis/ebbtide.dev/v1alpha1/namespaces/shop/drains/deployment-orders"


def discoverable() -> FakeApi:
    """Return an API server that says which resources it has, as kopf asks before it watches."""
    fake = FakeApi()

    def resource(plural: str, singular: str, kind: str) -> dict[str, Any]:
        verbs = ["list", "watch", "patch", "get"]
        return {"name": plural, "singularName": singular, "kind": kind, "namespaced": True, "verbs": verbs}

    def group(name: str, version: str) -> dict[str, Any]:
        served = {"groupVersion": f"{name}/{version}", "version": version}
        return {"name": name, "versions": [served], "preferredVersion": served}

    fake.put("/api", {"versions": ["v1"]})
    # kopf waits for namespaces to be served, though it is told to watch all of them at once.
    namespaces = {**resource("namespaces", "namespace", "Namespace"), "namespaced": False}
    fake.put("/api/v1", {"groupVersion": "v1", "resources": [namespaces]})
    fake.put("/apis", {"groups": [group("apps", "v1"), group("ebbtide.dev", "v1alpha1")]})
    deployments, sets = (
        resource("deployments", "deployment", "Deployment"),
        resource("replicasets", "replicaset", "ReplicaSet"),
    )
    fake.put("/apis/apps/v1", {"groupVersion": "apps/v1", "resources": [deployments, sets]})
    drains = resource("drains", "drain", "Drain")
    fake.put("/apis/ebbtide.dev/v1alpha1", {"groupVersion": "ebbtide.dev/v1alpha1", "resources": [drains]})
    return fake


class Scene:
    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.workloads = Workloads(Policy(), lambda _key: None)
        self.drains_deleted: list[tuple[str, str]] = []

    def replicas(self) -> int | None:
        found = self.workloads.get(ORDERS)
        return None if found is None else found.replicas


@asynccontextmanager
async def watching(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    scene = Scene(fake)
    async with serving(fake):
        monkeypatch.setattr(handlers, "connection", lambda: kopf.ConnectionInfo(server=fake.url))
        registry = handlers.build_registry(
            scene.workloads, lambda namespace, name: scene.drains_deleted.append((namespace, name))
        )
        tasks = await kopf.spawn_tasks(
            registry=registry, settings=handlers.build_settings(), standalone=True, clusterwide=True
        )
        try:
            yield scene
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_happens_to_workloads_reaches_the_cache_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "kopf")
    fake = discoverable()
    fake.put(DEPLOYMENT, a_deployment())
    fake.put(REPLICA_SET, a_replica_set())
    async with watching(fake, monkeypatch) as scene:
        await eventually(lambda: scene.workloads.owning("uid-orders-1"))
        fake.put(DEPLOYMENT, a_deployment(replicas=8))
        await eventually(lambda: scene.replicas() == 8)
        fake.put(DRAIN, {"metadata": {"name": "deployment-orders", "namespace": "shop", "uid": "drain"}})
        await eventually(lambda: fake.watchers >= 3)
        fake.remove(DRAIN)
        await eventually(lambda: scene.drains_deleted == [("shop", "deployment-orders")])
        fake.remove(REPLICA_SET)
        fake.remove(DEPLOYMENT)
        await eventually(lambda: scene.workloads.get(ORDERS) is None)
    assert fake.writes() == []


async def test_a_broken_watch_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = discoverable()
    fake.put(DEPLOYMENT, a_deployment())
    async with watching(fake, monkeypatch) as scene:
        await eventually(lambda: scene.replicas() == 3)
        await eventually(lambda: fake.watchers >= 3)
        fake.cut()
        fake.put(DEPLOYMENT, a_deployment(replicas=5))
        await eventually(lambda: scene.replicas() == 5)


def test_no_handler_can_make_kopf_write() -> None:
    registry = handlers.build_registry(Workloads(Policy(), lambda _key: None), lambda _namespace, _name: None)
    # Finalizers, progress and the last-seen state of objects are written for these kinds alone.
    assert not list(registry._changing.get_all_handlers())
    assert not list(registry._spawning.get_all_handlers())
    assert not list(registry._indexing.get_all_handlers())
    assert len(list(registry._watching.get_all_handlers())) == 3
    settings = handlers.build_settings()
    assert not settings.posting.enabled
    assert settings.peering.standalone
