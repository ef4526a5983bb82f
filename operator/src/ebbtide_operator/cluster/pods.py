"""Pods as the watch delivers them, decoded into the few fields that the rules read.

msgspec skips the rest of the document: 5,000 pods take 12 MiB instead of 143.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ebbtide_operator.core import names
from ebbtide_operator.core.marks import parse_time, read_marks
from ebbtide_operator.core.model import PodView


class Owner(msgspec.Struct):
    uid: str
    controller: bool = False


class Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[Owner] = []


class Condition(msgspec.Struct):
    type: str
    status: str


class Container(msgspec.Struct, rename="camel"):
    state: dict[str, Any] = {}
    last_state: dict[str, Any] = {}


class Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    conditions: list[Condition] = []
    container_statuses: list[Container] = []
    # A status event of the watch (410 Gone) has these two instead.
    code: int = 0
    message: str = ""


class Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""


class Pod(msgspec.Struct):
    metadata: Metadata
    spec: Spec = msgspec.field(default_factory=Spec)
    status: Status | str = msgspec.field(default_factory=Status)
    code: int = 0
    message: str = ""


class ListMetadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class PodList(msgspec.Struct):
    metadata: ListMetadata
    items: list[Pod]


class WatchEvent(msgspec.Struct):
    type: str
    object: Pod


def pod_view(document: Mapping[str, Any]) -> PodView:
    """Project a pod that came as plain JSON."""
    return view(msgspec.convert(document, Pod))


def view(pod: Pod) -> PodView:
    """Project a decoded pod."""
    metadata = pod.metadata
    status = pod.status if isinstance(pod.status, Status) else Status()
    marks = read_marks(metadata.annotations)
    return PodView(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        owner_uid=next((owner.uid for owner in metadata.owner_references if owner.controller), ""),
        created_at=parse_time(metadata.creation_timestamp),
        ready=any(one.type == "Ready" and one.status == "True" for one in status.conditions),
        scheduled=bool(pod.spec.node_name),
        started=any(not one.state.keys() <= {"waiting"} or bool(one.last_state) for one in status.container_statuses),
        terminating=metadata.deletion_timestamp is not None,
        finished=status.phase in {"Succeeded", "Failed"},
        label=metadata.labels.get(names.MANAGED, ""),
        floored=names.FLOOR in metadata.annotations,
        draining_since=marks.draining_since,
        deadline_at=marks.deadline_at,
        released=marks.released,
        deletion_cost=marks.deletion_cost,
        original_cost=marks.original_cost,
    )
