"""Whose size is to be read before a plan is carried out: docs/decisions/0023-sizes-read-before-pods-go.md says why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from ebbtide.protocol import Desired
from ebbtide_operator.core.fleet import Fleet
from ebbtide_operator.core.model import Action, Pin, Release, SendOrder

ASKED_S = 1.0
"""Least time between two reads of a size that are made only because a controller asks for a pod."""


def takes(action: Action) -> TypeGuard[Release | Pin | SendOrder]:
    """Say whether an action takes a pod from its ReplicaSet.

    There are two watches. Where that of the ReplicaSets is late, each new pod of a scale-up looks like one too many,
    and a drained pod like one that still has to go. A size that was read after the pods cannot lag behind them, since
    a ReplicaSet asks for a pod before it is made.
    """
    match action:
        case Release() | Pin():
            return True
        case SendOrder(_, order):
            # One that leaves is being deleted already.
            return order.desired is not Desired.SERVE and not order.leave
        case _:
            return False


def taken_from(actions: Iterable[Action]) -> frozenset[str]:
    """Return the ReplicaSets that pods would be taken from."""
    return frozenset(action.pod.owner_uid for action in actions if takes(action))


def asking(fleet: Fleet, now: float) -> tuple[frozenset[str], list[float]]:
    """Return the ReplicaSets whose controllers want fewer than we know of, and when to read those that were just read.

    A controller may have asked for another pod than the one that drains, and what it asked for is known for a minute.
    """
    due: set[str] = set()
    later: list[float] = []
    for facts in fleet.sets:
        uid = facts.view.uid
        if not facts.asked or facts.missing or uid in fleet.snapshot.sized:
            continue
        read_at = fleet.snapshot.size_read_at.get(uid, 0.0)
        if read_at <= now < read_at + ASKED_S:
            later.append(read_at + ASKED_S)
        else:
            due.add(uid)
    return frozenset(due), later
