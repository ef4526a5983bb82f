"""Every unit of work of the process, from its admission to its end.

The rule that makes the drain sound: an entry is inserted first and asked for admission after. A count that was taken
after intake closed can then miss no entry that was admitted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ebbtide.errors import Refused

if TYPE_CHECKING:
    from ebbtide.scope import Scope

REMEMBERED = 200
"""How many durations of finished work are kept for the estimate."""
ENOUGH = 5
"""Fewer finished ones than this are no ground for an estimate."""


@dataclass(slots=True, eq=False)
class Entry:
    """One unit of work in flight.

    Attributes:
        id: Unique in this process, counting up.
        kind: `task` (spawned) or `block` (tracked in place, in a task or a thread).
        task: What is cancelled for it; None for work in a thread, which cannot be.
    """

    id: int
    name: str
    kind: str
    scope: Scope
    meta: Mapping[str, Any] | None
    started_at: float
    task: asyncio.Task[Any] | None = None
    cancelled_for: str | None = None
    abandoned: bool = False


current_entry: ContextVar[Entry | None] = ContextVar("ebbtide_entry", default=None)


@dataclass
class Registry:
    """The entries in flight, and how those that ended did.

    Args:
        on_change: Called after each insertion and removal with how many are left, from whatever thread; must be cheap.
    """

    on_change: Callable[[int], None]
    intake_open: bool = True
    late_arrivals: int = 0
    tally: dict[str, int] = field(default_factory=dict)
    _entries: dict[int, Entry] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _durations: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        """Return the entries in flight, oldest first: one atomic copy."""
        return list(self._entries.values())

    def admit(self, scope: Scope, name: str | None, kind: str, meta: Mapping[str, Any] | None) -> Entry:
        """Insert an entry.

        Work that live work starts belongs to it and is admitted after intake closed, or nothing could ever be finished.

        Raises:
            Refused: Intake is closed and no live entry asks.
        """
        number = next(self._ids)
        entry = Entry(number, name or f"{scope.name}-{number}", kind, scope, meta, time.monotonic())
        self._entries[number] = entry
        if not self.intake_open:
            parent = current_entry.get()
            if parent is None or parent.id not in self._entries:
                del self._entries[number]
                self._count("refused")
                self.on_change(len(self._entries))
                raise Refused("draining")
            self.late_arrivals += 1
        self.on_change(len(self._entries))
        return entry

    def end(self, entry: Entry, outcome: str) -> None:
        """Remove an entry and count how it ended; one that was abandoned is counted already."""
        if self._entries.pop(entry.id, None) is None:
            return
        if not entry.abandoned:
            self._count(outcome)
        if outcome == "finished":
            self._durations.append(time.monotonic() - entry.started_at)
        self.on_change(len(self._entries))

    def abandon(self) -> int:
        """Count what is in flight as abandoned; return how many."""
        abandoned = [entry for entry in self._entries.values() if not entry.abandoned]
        for entry in abandoned:
            entry.abandoned = True
            self._count("abandoned")
        return len(abandoned)

    def oldest_age_s(self) -> float:
        """Return the age of the oldest entry; 0 without one."""
        oldest = next(iter(self._entries.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.started_at

    def eta_s(self) -> float | None:
        """Estimate the seconds until everything in flight has ended; None where there is too little to go by.

        Each entry is taken to last as long as 95 of 100 that finished lately, and an older one to end any moment.
        """
        ages = [time.monotonic() - entry.started_at for entry in self.entries()]
        if not ages:
            return 0.0
        if len(self._durations) < ENOUGH:
            return None
        durations = sorted(self._durations)
        usual_s = durations[int(len(durations) * 0.95)]
        return max(0.0, usual_s - min(ages))

    def _count(self, outcome: str) -> None:
        self.tally[outcome] = self.tally.get(outcome, 0) + 1
