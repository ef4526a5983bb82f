"""What the rules look at (Snapshot) and what they answer (Plan): frozen data, one sentence per field.

Times are Unix seconds (`_at`, `_since`), durations seconds (`_s`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ebbtide import environment
from ebbtide.protocol import DrainRecord, Order, Outcome, Phase, Report


class Mode(StrEnum):
    """How far a workload opted in."""

    MANAGED = "managed"
    FLOOR = "floor"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a user asked for, defaults filled in."""

    mode: Mode = Mode.OFF
    drain_timeout_s: float = environment.DEFAULT_DRAIN_TIMEOUT_S
    cancel_grace_s: float = environment.DEFAULT_CANCEL_GRACE_S
    quiesce_s: float = environment.DEFAULT_QUIESCE_S
    max_draining: int | str | None = None
    """A count, a percentage of the replicas (`25%`), or None: what one rolling step may remove."""
    container: str | None = None
    """The container that embeds the library; None: the first."""

    @property
    def budget_s(self) -> float:
        """Seconds from the drain order to the deadline."""
        return self.quiesce_s + self.drain_timeout_s + self.cancel_grace_s


@dataclass(frozen=True, slots=True)
class Problem:
    """A value of the user's that cannot be used; the message names the field and the fix."""

    annotation: str
    message: str
    fatal: bool = True
    """True where the workload runs as without Ebbtide for it; False: a warning, everything else counts."""


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """Name one workload; `kind` is lower case (`deployment`)."""

    namespace: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class ReplicaSetView:
    """The parts of a ReplicaSet that the rules read."""

    name: str
    uid: str
    replicas: int
    """spec.replicas: how many pods it should have."""
    observed_replicas: int
    """status.replicas: how many it has, terminating ones not counted."""
    revision: str
    rolled_back: bool = False
    """True where its template was current before and became current again."""


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """The parts of a Deployment that the rules read."""

    key: WorkloadKey
    uid: str
    generation: int
    observed_generation: int
    replicas: int
    max_surge: int
    """Resolved to pods, rounded up."""
    max_unavailable: int
    """Resolved to pods, rounded down."""
    paused: bool = False
    terminating: bool = False
    revision: str = ""
    """Revision of the current template."""
    sets: tuple[ReplicaSetView, ...] = ()
    policy: Policy = Policy()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class PodView:
    """The parts of a pod that the rules read, projected by the informer."""

    namespace: str
    name: str
    uid: str
    owner_uid: str
    """UID of the controlling ReplicaSet; empty without one."""
    created_at: float
    ready: bool = False
    scheduled: bool = True
    """False while it has no node."""
    started: bool = True
    """False while no container of it has ever run: it waits for a node, an image or its init containers."""
    terminating: bool = False
    finished: bool = False
    """Phase Succeeded or Failed: its controller no longer counts it."""
    label: str = ""
    """Value of the managed label."""
    floored: bool = True
    """False where it was made without the floor: before its workload was managed, or while Ebbtide was away."""
    draining_since: float | None = None
    deadline_at: float | None = None
    released: str | None = None
    deletion_cost: int | None = None
    original_cost: str | None = None
    """The user's cost that ours replaced; None: not pinned."""

    @property
    def counts(self) -> bool:
        """Whether its ReplicaSet counts it: neither terminating nor finished."""
        return not self.terminating and not self.finished


@dataclass(frozen=True, slots=True)
class ReportView:
    """A pod's last report as the store holds it."""

    report: Report
    live: bool
    """True while the pod's lease is kept alive: the key still carries its lease. False: the final report."""
    received_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one decision needs, gathered at one moment."""

    workload: WorkloadView
    pods: tuple[PodView, ...]
    """Pods of the workload's ReplicaSets, terminating ones included, unlabelled ones where they were looked for."""
    orders: Mapping[str, Order] = field(default_factory=dict)
    """By pod UID, also of pods that are gone."""
    reports: Mapping[str, ReportView] = field(default_factory=dict)
    """By pod UID."""
    sized: frozenset[str] = frozenset()
    """UIDs of the ReplicaSets whose size was read after the pods were: only from these may pods be taken."""
    size_read_at: Mapping[str, float] = field(default_factory=dict)
    """When the size of a ReplicaSet was last read, or tried to be, in earlier passes; by UID."""
    requested: frozenset[str] = frozenset()
    """UIDs of pods whose deletion a controller asked for and was refused."""
    phase: Phase | None = None
    """The phase record last written."""
    phase_revision: int = 0
    """Its modification revision."""
    phase_at: float = 0.0
    """When this operator saw it."""
    status: Mapping[str, object] | None = None
    """Status of the Drain object as last seen; None: there is no such object."""
    status_at: float = 0.0
    """When it was last written."""
    store_ok: bool = True
    """False while etcd cannot be read or written."""
    epoch: int = 0
    recent: tuple[DrainRecord, ...] = ()
    """The last ends of drains, newest first."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """Set the managed label of a pod that existed before; an empty label removes it."""

    pod: PodView
    label: str


@dataclass(frozen=True, slots=True)
class SendOrder:
    """Write a pod's order to the store, fenced by the epoch."""

    pod: PodView
    order: Order


@dataclass(frozen=True, slots=True)
class Pin:
    """Mark a pod as draining and make it its controller's first victim, in one patch."""

    pod: PodView
    since: float
    deadline_at: float


@dataclass(frozen=True, slots=True)
class Release:
    """Let a pod be deleted: one patch, which also wakes its controller."""

    pod: PodView
    outcome: Outcome
    message: str


@dataclass(frozen=True, slots=True)
class Return:
    """Take the drain marks off a pod that stays; the user's own deletion cost comes back."""

    pod: PodView


@dataclass(frozen=True, slots=True)
class PublishPhase:
    """Write the workload's phase record."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """Write down how a pod's drain ended and count it."""

    record: DrainRecord


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete the order, report and request of a pod that is gone."""

    namespace: str
    uid: str


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Write the status of the workload's Drain object, creating the object first where it is missing."""

    status: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RemoveStatus:
    """Delete the Drain object and the phase record: the workload is not managed any more."""


@dataclass(frozen=True, slots=True)
class Notify:
    """Post one Event on the workload."""

    reason: str
    message: str
    warning: bool = False


Action = (
    Adopt
    | SendOrder
    | Pin
    | Release
    | Return
    | PublishPhase
    | WriteRecord
    | Forget
    | WriteStatus
    | RemoveStatus
    | Notify
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one workload now, in order, and when to look again without being woken."""

    actions: tuple[Action, ...] = ()
    requeue_after_s: float | None = None
    unsized: frozenset[str] = frozenset()
    """UIDs of ReplicaSets whose size decides, and may be older than the pods: to be read first.

    What would take pods of theirs is left out, and so is what tells of the plan.
    """
    reason: str = ""
    """CamelCase, as in conditions."""
    message: str = ""
    draining: int = 0
    surplus: int = 0
    tasks_left: int = 0
