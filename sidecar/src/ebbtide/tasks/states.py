"""What is in flight, as it is to whoever looks at it."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from ebbtide.tasks.entries import EntryView, Live, kind_of, name_of
from ebbtide.tasks.heartbeats import missed

if TYPE_CHECKING:
    from ebbtide.tasks.registry import Registry

CANCELLED = "cancelling"
ABANDONED = "abandoned"
STALE = "stale"


def view(registry: Registry) -> list[EntryView]:
    """Return what is in flight, in the order of admission."""
    now = monotonic()
    return [
        EntryView(
            number=item.number,
            name=name_of(item),
            kind=kind_of(item),
            scope=item.scope.name,
            meta=item.meta,
            age_s=now - item.started_at,
            state=state_of(registry, item, now),
            heartbeat_age_s=beat_age_s(registry, item, now),
        )
        for item in registry.entries()
    ]


def state_of(registry: Registry, item: Live, now: float) -> str:
    """Return `running`, `stale` (its heartbeats are missing), `cancelling` or `abandoned`."""
    if item.number in registry.abandoned:
        return ABANDONED
    if registry.marks.asked_at(item) is not None:
        return CANCELLED
    return STALE if missed(item.scope.heartbeat_s, beat_age_s(registry, item, now)) else "running"


def beat_age_s(registry: Registry, item: Live, now: float) -> float | None:
    """Return the seconds since an entry last said that it is alive, at its start for the first time.

    None where it promised no heartbeats and sent none.
    """
    beat_at = registry.beats.get(item.number)
    if beat_at is None and item.scope.heartbeat_s is None:
        return None
    return now - (item.started_at if beat_at is None else beat_at)
