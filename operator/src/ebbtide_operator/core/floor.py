"""What the create webhook adds to a pod, so that it drains by itself: a JSON patch.

It needs nothing of ours once the pod exists. What a user set is never replaced. Applying the patch to its own result
changes nothing, so a second round of webhooks is harmless.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ebbtide import environment
from ebbtide_operator.core import names
from ebbtide_operator.core.model import Mode, Policy, WorkloadKey

Json = Mapping[str, Any]

VOLUME = "ebbtide-token"
TOKEN_LIFE_S = 3600
DEFAULT_GRACE_S = 30
"""What Kubernetes fills in where a pod says nothing."""
PRESTOP_MARGIN_S = 1
"""The hook gives up this long after the budget, so that an answer on its last moment still counts."""


@dataclass(frozen=True, slots=True)
class FloorEndpoint:
    """How pods reach the operator."""

    endpoints: tuple[str, ...]
    """Base URLs of the relay."""
    ca_pem: str
    prefix: str
    admin_token: str
    """Fresh for this pod; already in the pod's environment where the webhook is called again."""


@dataclass(frozen=True, slots=True)
class FloorPatch:
    """A JSON patch (RFC 6902), and what a person should know about it."""

    operations: tuple[Json, ...]
    notes: tuple[str, ...] = ()


def floor_patch(pod: Json, workload: WorkloadKey, policy: Policy, endpoint: FloorEndpoint) -> FloorPatch:
    """Return what to add to a new pod of a workload.

    Args:
        pod: The pod of the admission request.
        workload: Whose it is.
        policy: The workload's; with mode OFF nothing is added.
        endpoint: How the pod reaches the operator.
    """
    if policy.mode is Mode.OFF:
        return FloorPatch(())
    containers: Sequence[Json] = pod["spec"].get("containers", [])
    chosen = _chosen(containers, policy.container)
    label = "true" if policy.mode is Mode.MANAGED else "floor"
    if chosen is None:
        # Held all the same: the deadline ends that, and the note says why nothing comes from the pod.
        present = ", ".join(one["name"] for one in containers)
        note = f"{names.CONTAINER}: there is no container {policy.container!r}; the pod has {present}"
        return FloorPatch(_metadata(pod, label, f"nothing: {note}"), (note,))
    patch = _Patch()
    index, container = chosen
    path = f"/spec/containers/{index}"
    hook_s = _own_hook_s(pod, container)
    grace_s = _grace_s(pod, policy, hook_s)
    # The library counts from SIGTERM on, which waits for the hook.
    patch.add_missing(f"{path}/env", container.get("env"), _variables(workload, policy, endpoint, grace_s - hook_s))
    _mount_token(patch, pod, container, path)
    notes = _set_prestop(patch, container, path, policy, endpoint)
    own_grace = pod["spec"].get("terminationGracePeriodSeconds")
    if own_grace != grace_s:
        patch.operations.append({"op": "add", "path": "/spec/terminationGracePeriodSeconds", "value": grace_s})
    summary = f"container {container['name']}, grace period {grace_s} s"
    return FloorPatch((*_metadata(pod, label, "; ".join((summary, *notes))), *patch.operations), notes)


class _Patch:
    """JSON patch operations that add to lists which may be missing."""

    def __init__(self) -> None:
        self.operations: list[Json] = []

    def add_missing(self, path: str, present: Sequence[Json] | None, wanted: Sequence[Json], key: str = "name") -> None:
        """Append those of `wanted` whose key no item of `present` has."""
        known = {one.get(key) for one in present or ()}
        added = [one for one in wanted if one[key] not in known]
        if not added:
            return
        if not present:
            self.operations.append({"op": "add", "path": path, "value": added})
            return
        self.operations += ({"op": "add", "path": f"{path}/-", "value": one} for one in added)


def _chosen(containers: Sequence[Json], name: str | None) -> tuple[int, Json] | None:
    if name is None:
        return (0, containers[0]) if containers else None
    return next(((index, one) for index, one in enumerate(containers) if one["name"] == name), None)


def _grace_s(pod: Json, policy: Policy, hook_s: int) -> int:
    return max(_own_grace_s(pod), math.ceil(policy.budget_s + environment.EXIT_MARGIN_S) + hook_s)


def _own_grace_s(pod: Json) -> int:
    own: int | None = pod["spec"].get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE_S if own is None else own


def _own_hook_s(pod: Json, container: Json) -> int:
    """Return how long a preStop hook of the user's may take of the grace period, which runs from its start."""
    hook = _prestop(container)
    if hook is None or _is_ours(hook):
        return 0
    if "sleep" in hook:
        seconds: int = hook["sleep"].get("seconds", 0)
        return seconds
    # Of a command or a request nothing is known but that its author gave it this long. In a second round of webhooks
    # the grace period has the room already.
    return 0 if names.FLOOR in (pod.get("metadata", {}).get("annotations") or {}) else _own_grace_s(pod)


def _variables(workload: WorkloadKey, policy: Policy, endpoint: FloorEndpoint, grace_s: int) -> list[Json]:
    literal = {
        environment.WORKLOAD: f"{workload.kind}/{workload.name}",
        environment.ENDPOINTS: ",".join(endpoint.endpoints),
        environment.CA: endpoint.ca_pem,
        environment.TOKEN_FILE: f"{environment.TOKEN_MOUNT}/token",
        environment.PREFIX: endpoint.prefix,
        environment.ADMIN_ADDRESS: f"[::]:{environment.ADMIN_PORT}",
        environment.ADMIN_TOKEN: endpoint.admin_token,
        environment.QUIESCE: f"{policy.quiesce_s:g}",
        environment.DRAIN_TIMEOUT: f"{policy.drain_timeout_s:g}",
        environment.CANCEL_GRACE: f"{policy.cancel_grace_s:g}",
        environment.GRACE_PERIOD: str(grace_s),
    }
    fields = {
        environment.POD_NAME: "metadata.name",
        environment.POD_NAMESPACE: "metadata.namespace",
        environment.POD_UID: "metadata.uid",
    }
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *({"name": name, "value": value} for name, value in literal.items()),
    ]


def _mount_token(patch: _Patch, pod: Json, container: Json, path: str) -> None:
    token = {"audience": environment.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_LIFE_S, "path": "token"}
    volume = {"name": VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}
    patch.add_missing("/spec/volumes", pod["spec"].get("volumes"), [volume])
    mount = {"name": VOLUME, "mountPath": environment.TOKEN_MOUNT, "readOnly": True}
    patch.add_missing(f"{path}/volumeMounts", container.get("volumeMounts"), [mount])


def _set_prestop(patch: _Patch, container: Json, path: str, policy: Policy, endpoint: FloorEndpoint) -> tuple[str, ...]:
    lifecycle: Json | None = container.get("lifecycle")
    hook = _prestop(container)
    port = _admin_port(container)
    if hook is not None:
        return () if _is_ours(hook) else ("preStop: the container's own is kept; SIGTERM starts the drain after it",)
    if port is None:
        name = environment.ADMIN_ADDRESS
        return (f"preStop: not added, since the container's {name} does not listen on the pod's address",)
    wait_s = math.ceil(policy.budget_s + PRESTOP_MARGIN_S)
    token = _present(container, environment.ADMIN_TOKEN) or endpoint.admin_token
    hook = {
        "httpGet": {
            "path": f"/drain?start=prestop&wait={wait_s}",
            "port": port,
            "httpHeaders": [{"name": "Authorization", "value": f"Bearer {token}"}],
        }
    }
    if lifecycle is None:
        patch.operations.append({"op": "add", "path": f"{path}/lifecycle", "value": {"preStop": hook}})
    else:
        patch.operations.append({"op": "add", "path": f"{path}/lifecycle/preStop", "value": hook})
    return ()


def _prestop(container: Json) -> Json | None:
    hook: Json | None = (container.get("lifecycle") or {}).get("preStop")
    return hook


def _is_ours(hook: Json) -> bool:
    return str((hook.get("httpGet") or {}).get("path", "")).startswith("/drain?start=prestop")


def _admin_port(container: Json) -> int | None:
    """Return the port where the kubelet finds the library; None: a user bound it to loopback, or wrote nonsense."""
    own = _present(container, environment.ADMIN_ADDRESS)
    if own is None:
        return environment.ADMIN_PORT
    host, _, port = own.rpartition(":")
    reachable = port.isdecimal() and host not in {"127.0.0.1", "localhost", "[::1]", ""}
    return int(port) if reachable else None


def _present(container: Json, name: str) -> str | None:
    for variable in container.get("env") or ():
        if variable["name"] == name:
            value: str | None = variable.get("value")
            return value
    return None


def _metadata(pod: Json, label: str, summary: str) -> tuple[Json, ...]:
    metadata: Json = pod.get("metadata", {})
    return (
        *_entry("labels", metadata.get("labels"), names.MANAGED, label),
        *_entry("annotations", metadata.get("annotations"), names.FLOOR, summary),
    )


def _entry(field: str, present: Mapping[str, str] | None, name: str, value: str) -> tuple[Json, ...]:
    if present is not None and present.get(name) == value:
        return ()
    if not present:
        return ({"op": "add", "path": f"/metadata/{field}", "value": {name: value}},)
    # RFC 6901: a slash inside a key is spelled ~1.
    return ({"op": "add", "path": f"/metadata/{field}/{name.replace('/', '~1')}", "value": value},)
