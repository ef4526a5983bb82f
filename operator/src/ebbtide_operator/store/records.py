"""From a key to what is under it: which record it is, and whose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ebbtide.protocol import Keys
from ebbtide_operator.core.model import WorkloadKey


class Kind(StrEnum):
    LEADER = "leader"
    ORDER = "order"
    REPORT = "report"
    REQUEST = "request"
    PHASE = "phase"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class Address:
    """What a key says: the pod (`uid`) or the workload that a record is about."""

    kind: Kind
    namespace: str = ""
    uid: str = ""
    workload: WorkloadKey | None = None


class Addresses:
    """Read keys below one prefix."""

    def __init__(self, keys: Keys) -> None:
        self._leader = keys.leader
        self._of_pods = {keys.orders: Kind.ORDER, keys.reports: Kind.REPORT, keys.requests: Kind.REQUEST}
        self._of_workloads = {keys.phases: Kind.PHASE, keys.records: Kind.RECORD}

    def read(self, key: str) -> Address | None:
        """Return what a key is about; None: it is none of the protocol's keys."""
        if key == self._leader:
            return Address(Kind.LEADER)
        for prefix, kind in self._of_pods.items():
            if key.startswith(prefix):
                parts = key.removeprefix(prefix).split("/")
                return Address(kind, parts[0], uid=parts[1]) if len(parts) == 2 and all(parts) else None
        for prefix, kind in self._of_workloads.items():
            if key.startswith(prefix):
                parts = key.removeprefix(prefix).split("/")
                if len(parts) != (3 if kind is Kind.PHASE else 4) or not all(parts):
                    return None
                return Address(kind, parts[0], workload=WorkloadKey(parts[0], parts[1], parts[2]))
        return None
