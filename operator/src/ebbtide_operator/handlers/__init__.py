"""kopf's part: what happens to Deployments and ReplicaSets reaches the cache, which wakes the queue.

Only `on.event` and the set-up handlers are used, and every handler returns None: anything else would make kopf write to
users' objects (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from ebbtide_operator.cluster.api import connection
from ebbtide_operator.cluster.workloads import Workloads
from ebbtide_operator.core import names


def build_registry(workloads: Workloads, on_drain_deleted: Callable[[str, str], None]) -> kopf.OperatorRegistry:
    """Return a registry of our own, so that nothing that is imported elsewhere adds handlers to it.

    Args:
        workloads: Told every event of a Deployment or a ReplicaSet.
        on_drain_deleted: Told the namespace and the name of a Drain object that is gone.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**_: Any) -> kopf.ConnectionInfo:
        return connection()

    @kopf.on.event("apps", "v1", "deployments", registry=registry)
    async def deployment_changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 (kopf's name)
        workloads.take_deployment(body, deleted=type == "DELETED")

    @kopf.on.event("apps", "v1", "replicasets", registry=registry)
    async def replica_set_changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 (kopf's name)
        workloads.take_replica_set(body, deleted=type == "DELETED")

    @kopf.on.event(names.DOMAIN, names.API_VERSION, "drains", registry=registry)
    async def drain_changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 (kopf's name)
        if type == "DELETED":
            on_drain_deleted(body["metadata"]["namespace"], body["metadata"]["name"])

    return registry


def build_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: no posting, no scanning for resources, and watches that notice a dead connection."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    # A watch that the server or the network forgot would leave us blind (nolar/kopf#1276): bounded from both ends.
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 5
    settings.networking.request_timeout = 10
    # kopf's own grow to 21 s: for so long after an outage the sizes would be those from before it.
    settings.networking.error_backoffs = (1.0,) * 60
    # kopf would kill the whole process this long after its own end.
    settings.process.ultimate_exiting_timeout = None
    return settings
