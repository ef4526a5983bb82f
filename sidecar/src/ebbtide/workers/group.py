"""Who belongs to a pod, what all of them were told, and what became of those that left. Pure: no clock, no I/O.

The worker that leads keeps a group, and gives every other worker a copy: whoever takes over goes on with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ebbtide.lifecycle.machine import Durations, Source
from ebbtide.protocol import Desired, Order, Report
from ebbtide.workers.snapshot import Counts, Snapshot, added, lost_with, merged_report

REMEMBERED = 32
"""How many of those that left can come back without being counted twice: a worker that was frozen may."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A drain of the whole pod that somebody near it asked for: preStop, or a person."""

    source: Source
    text: str
    leave: bool
    asked_at: float
    """Monotonic seconds, which all processes of a machine share."""


@dataclass(frozen=True, slots=True)
class Told:
    """What holds for every worker of the pod, those to come among them."""

    order: Order | None = None
    order_at: float = 0.0
    """Monotonic seconds of its receipt."""
    drain: Drain | None = None
    returned: bool = False
    """A person took the drain back since then."""

    def ordered(self, order: Order, now: float) -> Told:
        """Take note of an order; one that was seen before changes nothing."""
        known = self.order
        if known is not None and (order.epoch < known.epoch or order.generation <= known.generation):
            return self
        taken_back = order.desired is Desired.SERVE and self.drain is not None and not self.drain.leave
        return Told(order, now, None if taken_back else self.drain)

    def asked(self, source: Source, text: str, *, leave: bool, now: float) -> Told:
        """Take note of a request to drain; the first one stays."""
        drain = self.drain or Drain(source, text, leave, now)
        return replace(self, drain=replace(drain, leave=drain.leave or leave), returned=False)

    def undrained(self) -> Told:
        """Take note of a request to serve again; who leaves does not come back."""
        leaves = any(asked is not None and asked.leave for asked in (self.drain, self.order))
        return self if leaves else replace(self, drain=None, returned=True)

    @property
    def to_drain(self) -> bool:
        """Whether the pod as a whole is to drain."""
        ordered = self.order is not None and self.order.desired is not Desired.SERVE and not self.returned
        return ordered or self.drain is not None

    def forgotten(self) -> Told:
        """Take note of a store that began anew: its orders count from the beginning."""
        return replace(self, order=None)


def order_left(order: Order, elapsed_s: float) -> Order:
    """Return an order for a worker that comes later, so that it ends with the others."""
    left = durations_left(Durations(order.quiesce_s, order.drain_timeout_s, order.cancel_grace_s), elapsed_s)
    return replace(
        order,
        quiesce_s=left.quiesce_s,
        drain_timeout_s=left.drain_timeout_s,
        cancel_grace_s=left.cancel_grace_s,
    )


def durations_left(durations: Durations, elapsed_s: float) -> Durations:
    """Return what is left of each part of a drain, in order, after so many seconds."""
    left = []
    for part_s in (durations.quiesce_s, durations.drain_timeout_s, durations.cancel_grace_s):
        spent_s = min(part_s, max(0.0, elapsed_s))
        left.append(part_s - spent_s)
        elapsed_s -= spent_s
    return Durations(*left)


class Group:
    """The workers of one pod.

    Args:
        boot_id: Of the pod's reports. It stays when another worker takes over; a pod some of whose workers had to be
            replaced because they cancelled tasks is not the old one, and gets another.

    Attributes:
        leader: The worker that speaks for all.
        sequence: Of the last report that may have been written.
        workers: Those that live, as they were seen last.
        gone: The counters of those that do not.
        told: What holds for all.
    """

    def __init__(self, boot_id: str) -> None:
        self.boot_id = boot_id
        self.leader = ""
        self.sequence = 0
        self.workers: dict[str, Snapshot] = {}
        self.gone: Counts = {}
        self.told = Told()
        self._left: dict[str, Counts] = {}

    def update(self, snapshot: Snapshot) -> None:
        """Take note of a worker that lives: a new one, one that changed, or one that was taken for dead."""
        counted = self._left.pop(snapshot.worker, None)
        if counted is not None:
            self.gone = added(self.gone, counted, -1)
        self.workers[snapshot.worker] = snapshot

    def leave(self, worker: str, new_boot_id: str) -> Snapshot | None:
        """Take note of a worker that is gone, however that came; what it had in flight is abandoned, and counted once.

        Args:
            worker: Which.
            new_boot_id: Taken where the last worker that cancelled tasks goes, and others stay.

        Returns:
            What was known of it; None where it was not known.
        """
        snapshot = self.workers.pop(worker, None)
        if snapshot is None:
            return None
        self._left[worker] = lost_with(snapshot)
        self.gone = added(self.gone, self._left[worker])
        while len(self._left) > REMEMBERED:
            del self._left[next(iter(self._left))]
        rest = self.workers.values()
        if snapshot.report.forced and rest and not any(each.report.forced for each in rest):
            self.boot_id = new_boot_id
        return snapshot

    def report(self, phase_revision: int) -> Report:
        """Return the report of the pod as it is now."""
        return merged_report(
            tuple(self.workers.values()),
            self.gone,
            sequence=self.sequence,
            boot_id=self.boot_id,
            phase_revision=phase_revision,
        )

    def encode(self) -> dict[str, Any]:
        """Return all of it as JSON, for whoever takes over."""
        told = self.told
        return {
            "boot_id": self.boot_id,
            "leader": self.leader,
            "sequence": self.sequence,
            "workers": [each.encode() for each in self.workers.values()],
            "gone": self.gone,
            "left": self._left,
            "order": None if told.order is None else told.order.encode().decode(),
            "order_at": told.order_at,
            "returned": told.returned,
            "drain": None
            if told.drain is None
            else [told.drain.source, told.drain.text, told.drain.leave, told.drain.asked_at],
        }

    @classmethod
    def decode(cls, document: Mapping[str, Any]) -> Self:
        """Read what `encode` made.

        Raises:
            KeyError, TypeError, ValueError: It was made by something else.
        """
        group = cls(document["boot_id"])
        group.leader = document["leader"]
        group.sequence = document["sequence"]
        group.workers = {each["worker"]: Snapshot.decode(each) for each in document["workers"]}
        group.gone = document["gone"]
        group._left = dict(document["left"])
        order, drain = document["order"], document["drain"]
        group.told = Told(
            None if order is None else Order.decode(order.encode()),
            document["order_at"],
            None if drain is None else Drain(Source(drain[0]), *drain[1:]),
            document["returned"],
        )
        return group
