"""The contract between pods and the operator: etcd keys, and the JSON records under them.

Both sides import this module and nothing else defines a key or a field. It is pure: no clock, no I/O. Every record
carries `v`; a reader keeps the fields that it does not know, so that it can write a record back without loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar, Self

from ebbtide.vocabulary import (
    DEFAULT_PREFIX,
    DRAIN_STATES,
    MOST_DRAIN_BYTES,
    TASK_OUTCOMES,
    Desired,
    Outcome,
    PodState,
    RolloutPhase,
)

__all__ = [
    "DEFAULT_PREFIX",
    "DRAIN_STATES",
    "MOST_DRAIN_BYTES",
    "TASK_OUTCOMES",
    "VERSION",
    "Desired",
    "DrainRecord",
    "Keys",
    "Leader",
    "Order",
    "Outcome",
    "Phase",
    "PodState",
    "RecordError",
    "Report",
    "Request",
    "RolloutPhase",
]

VERSION = 1


class RecordError(ValueError):
    """A record cannot be read: names the key's kind, the field and what was found there."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Spell every key below one prefix.

    `prefix` starts with a slash and does not end with one. Kinds are lower case (`deployment`).
    """

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not self.prefix.startswith("/") or self.prefix.endswith("/"):
            raise ValueError(f"prefix: must start with '/' and not end with '/', not {self.prefix!r}")

    @property
    def leader(self) -> str:
        return f"{self.prefix}/leader"

    @property
    def orders(self) -> str:
        return f"{self.prefix}/orders/"

    @property
    def reports(self) -> str:
        return f"{self.prefix}/reports/"

    @property
    def requests(self) -> str:
        return f"{self.prefix}/requests/"

    @property
    def phases(self) -> str:
        return f"{self.prefix}/phases/"

    @property
    def records(self) -> str:
        return f"{self.prefix}/records/"

    def order(self, namespace: str, uid: str) -> str:
        return f"{self.orders}{namespace}/{uid}"

    def report(self, namespace: str, uid: str) -> str:
        return f"{self.reports}{namespace}/{uid}"

    def request(self, namespace: str, uid: str) -> str:
        return f"{self.requests}{namespace}/{uid}"

    def phase(self, namespace: str, kind: str, name: str) -> str:
        return f"{self.phases}{namespace}/{kind}/{name}"

    def record(self, namespace: str, kind: str, name: str, at: float, uid: str) -> str:
        """Name a history entry; `at` is Unix time in seconds, and keys of one workload sort by it."""
        return f"{self.records}{namespace}/{kind}/{name}/{int(at * 1000):015d}-{uid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """Share the codec: JSON object in, JSON object out, unknown fields kept in `extra`."""

    kind: ClassVar[str]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the record as compact JSON with sorted keys: equal records are equal bytes."""
        document: dict[str, Any] = {**self.extra, "v": VERSION}
        for spec in fields(self):
            if spec.name == "extra":
                continue
            value = getattr(self, spec.name)
            document[spec.name] = dict(value) if isinstance(value, Mapping) else value
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a record.

        Raises:
            RecordError: The bytes are no JSON object, a field has the wrong type, or `v` is from a later major version.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{cls.kind}: not JSON: {error}") from error
        if not isinstance(document, dict):
            raise RecordError(f"{cls.kind}: must be an object, not {type(document).__name__}")
        version = document.pop("v", VERSION)
        if version != VERSION:
            raise RecordError(f"{cls.kind}: v: this side reads version {VERSION}, not {version!r}")
        values: dict[str, Any] = {}
        for spec in fields(cls):
            if spec.name == "extra" or spec.name not in document:
                continue
            values[spec.name] = _checked(cls.kind, spec.name, str(spec.type), document.pop(spec.name))
        try:
            return cls(extra=document, **values)
        except TypeError as error:
            raise RecordError(f"{cls.kind}: {error}") from error


_ENUMS: dict[str, type[StrEnum]] = {
    "Desired": Desired,
    "PodState": PodState,
    "RolloutPhase": RolloutPhase,
    "Outcome": Outcome,
}
_SCALARS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def _checked(kind: str, name: str, annotation: str, value: Any) -> Any:
    if annotation.endswith(" | None"):
        if value is None:
            return None
        annotation = annotation.removesuffix(" | None")
    if annotation in _ENUMS:
        try:
            return _ENUMS[annotation](value)
        except ValueError:
            allowed = ", ".join(_ENUMS[annotation])
            raise RecordError(f"{kind}: {name}: must be one of {allowed}, not {value!r}") from None
    if annotation.startswith("Mapping[str, int]"):
        if isinstance(value, dict) and all(type(count) is int and 0 <= count < 2**63 for count in value.values()):
            return value
        raise RecordError(f"{kind}: {name}: must be an object of 64-bit integers from 0, not {value!r}")
    if annotation == "Mapping[str, Any]":
        if isinstance(value, dict) and _is_small(value):
            return value
        raise RecordError(f"{kind}: {name}: must be an object of finite values, at most {MOST_DRAIN_BYTES} bytes")
    wanted = _SCALARS[annotation]
    # bool is an int in Python but not in the protocol.
    if not isinstance(value, wanted) or (isinstance(value, bool) and annotation != "bool"):
        raise RecordError(f"{kind}: {name}: must be {annotation}, not {value!r}")
    if isinstance(value, int | float) and not _is_finite(value):
        raise RecordError(f"{kind}: {name}: must be a finite number of at most 64 bits, not {value!r}")
    # All integers of the protocol count something.
    if annotation == "int" and isinstance(value, int) and value < 0:
        raise RecordError(f"{kind}: {name}: must be 0 or more, not {value!r}")
    return value


def _is_finite(number: float) -> bool:
    """Refuse what Python's JSON takes and nothing else does: NaN, infinity, integers without bounds."""
    return -(2**63) <= number < 2**63


def _is_small(document: Mapping[str, Any]) -> bool:
    try:
        return len(json.dumps(document, separators=(",", ":"), allow_nan=False)) <= MOST_DRAIN_BYTES
    except (ValueError, RecursionError):
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(_Record):
    """What one pod is to do. Written by the leading operator, in a transaction that compares its epoch."""

    kind: ClassVar[str] = "order"

    desired: Desired
    generation: int
    """Grows by one with each order to this pod; a pod ignores a generation that it has seen."""
    epoch: int
    """Create revision of the `leader` key of the writer; a pod ignores an epoch below the last one."""
    reason: str = ""
    quiesce_s: float = 0.0
    """Seconds to keep intake open, unready, while endpoints propagate."""
    drain_timeout_s: float = 60.0
    """Seconds that tasks may go on after intake closed."""
    cancel_grace_s: float = 10.0
    """Seconds that cancelled tasks may clean up."""
    issued_at: float = 0.0
    """Operator's Unix time in seconds at the first writing; 0: not known. A pod counts from receipt, not from here."""
    pod: str = ""
    """Name of the pod: the key has its UID only, and the order outlives the pod."""
    workload: str = ""
    """`kind/name`, the kind in lower case: whose history the end of this drain belongs to."""
    revision: str = ""
    """Revision of the pod's template."""
    active: int = 0
    """Tasks that the pod had in flight when it was chosen, as far as it had said."""
    leave: bool = False
    """The pod is being deleted: its process is to end once it is drained, as after SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(_Record):
    """What one pod is doing. Written by that pod alone, bound to its lease until the final one."""

    kind: ClassVar[str] = "report"

    state: PodState
    sequence: int
    """Grows by one with each report of one boot."""
    boot_id: str
    """Random per process start, so that a restarted container is not taken for the old one."""
    generation: int = 0
    """Generation of the order obeyed; 0 before the first."""
    active: int = 0
    """Tasks in flight."""
    oldest_age_s: float = 0.0
    eta_s: float | None = None
    """Seconds until the pod expects to be drained; None where it cannot tell."""
    tally: Mapping[str, int] = field(default_factory=dict)
    """Tasks that ended since the process started, by outcome (`TASK_OUTCOMES`)."""
    forced: bool = False
    """True once tasks were cancelled for the drain: the process restarts rather than serve again."""
    phase_revision: int = 0
    """Modification revision of the workload's phase record that this report answers."""
    drain: Mapping[str, Any] | None = None
    """Once drained: how that went, for people (`lifecycle/drainreport.py`); at most `MOST_DRAIN_BYTES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase(_Record):
    """What a workload is going through. A new one makes its pods report their load afresh."""

    kind: ClassVar[str] = "phase"

    phase: RolloutPhase
    revision: str = ""
    """The workload's own revision (`deployment.kubernetes.io/revision`)."""
    reason: str = ""
    pods: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(_Record):
    """A controller asked to delete this pod. Written by any replica that answered, bound to a short lease."""

    kind: ClassVar[str] = "request"

    by: str
    at: float
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader(_Record):
    """Who plans. Bound to the leader's lease; its create revision is the epoch."""

    kind: ClassVar[str] = "leader"

    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRecord(_Record):
    """What became of one pod's drain. Kept after the pod is gone; bounded in number per workload."""

    kind: ClassVar[str] = "record"

    pod: str
    uid: str
    outcome: Outcome
    reason: str
    revision: str = ""
    started_at: float = 0.0
    """Unix time in seconds of the drain order."""
    ended_at: float = 0.0
    active_at_start: int = 0
    active_at_end: int = 0
    """Tasks still running at the end: the ones that were lost or abandoned."""
    tally: Mapping[str, int] = field(default_factory=dict)
    drain: Mapping[str, Any] | None = None
    """What the pod's last report said of its drain."""
