"""What a drain was like, as data: for one log line, for JSON, and small enough for the store. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ebbtide.vocabulary import MOST_DRAIN_BYTES, Outcome

SHOWN = 3
"""Finishers and stragglers named in the log line and in the store."""
CLIPPED = 80
"""Characters of a name in the store."""


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """How long one state of the drain took, against its plan."""

    state: str
    planned_s: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Finisher:
    """Work that held the drain for a while and ended."""

    name: str
    kind: str
    scope: str
    age_s: float
    """At its end."""
    held_s: float
    """Seconds of the drain during which it was in flight."""
    outcome: str

    def __str__(self) -> str:
        return f"{self.name} of {self.scope} ({self.outcome} after {self.held_s:.3g} s)"


@dataclass(frozen=True, slots=True)
class Straggler:
    """Work that was still in flight when the drain timeout passed."""

    name: str
    kind: str
    scope: str
    age_s: float
    """When it was looked at."""
    where: str
    """The line of the application where it was then."""
    stack: tuple[str, ...]
    """Its innermost frames, the outermost of them first."""
    outcome: str | None = None
    """How it ended; None: it has not."""

    def __str__(self) -> str:
        return f"{self.name} of {self.scope} ({self.outcome or 'not ended'}) at {self.where}"


@dataclass(frozen=True, slots=True)
class HookRecord:
    """How one run of a hook went."""

    name: str
    took_s: float
    error: str | None
    """None where it succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain was like, or is like so far.

    Attributes:
        outcome: How it ended; None: it is under way.
        reason: Why the process drains.
        started_at: Unix time in seconds.
        took_s: Seconds until it was drained, or so far.
        budget_s: Seconds that it could take, as planned at its start.
        phases: What each state took; states that it has not come to are left out.
        active_at_start: Tasks, blocks and threads in flight at its start.
        active: Those that are still in flight.
        counts: How those ended that ended since, by outcome; refusals among them.
        late_arrivals: How many were admitted after intake closed, because live work started them.
        slowest: Those that held the drain longest and ended, the longest first.
        stragglers: Those in flight when the drain timeout passed; at most 20, those that never ended first.
        stragglers_in_all: How many there were.
        hooks: Of the drain and of the exit, in the order in which they ran.
    """

    outcome: Outcome | None
    reason: str
    started_at: float
    took_s: float
    budget_s: float
    phases: Sequence[PhaseTime] = ()
    active_at_start: int = 0
    active: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    late_arrivals: int = 0
    slowest: Sequence[Finisher] = ()
    stragglers: Sequence[Straggler] = ()
    stragglers_in_all: int = 0
    hooks: Sequence[HookRecord] = ()

    def line(self) -> str:
        """Return the report as one line for the log."""
        phases = ", ".join(
            f"{phase.state} {phase.took_s:.3g} of {phase.planned_s:.3g} s" for phase in self.phases if phase.planned_s
        )
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items()) or "none ended"
        parts = [
            f"drain {self.outcome or 'under way'} in {self.took_s:.3g} of {self.budget_s:.3g} s ({self.reason})",
            phases,
            f"{self.active_at_start} in flight at its start: {counts}",
            _listed("slowest", self.slowest, len(self.slowest)),
            _listed("stragglers", self.stragglers, self.stragglers_in_all),
        ]
        # Names and reasons are the application's, and may have anything in them.
        return "".join(char if char.isprintable() else "?" for char in "; ".join(filter(None, parts)))

    def as_json(self) -> Mapping[str, Any]:
        """Return the whole report as a JSON document, times rounded to milliseconds."""
        document: Mapping[str, Any] = _rounded(asdict(self))
        return document

    def digest(self) -> Mapping[str, Any]:
        """Return what fits the store: a JSON document of at most `MOST_DRAIN_BYTES`, whatever names the tasks have."""
        document = {
            "outcome": self.outcome,
            "reason": _clipped(self.reason),
            "started_at": self.started_at,
            "took_s": self.took_s,
            "budget_s": self.budget_s,
            "phases": {phase.state: phase.took_s for phase in self.phases},
            "active_at_start": self.active_at_start,
            "counts": dict(self.counts),
            "late_arrivals": self.late_arrivals,
            "slowest": [
                {"name": _clipped(item.name), "held_s": item.held_s, "outcome": item.outcome}
                for item in self.slowest[:SHOWN]
            ],
            "stragglers_in_all": self.stragglers_in_all,
            "stragglers": [
                {"name": _clipped(item.name), "where": _clipped(item.where, keep_end=True), "outcome": item.outcome}
                for item in self.stragglers[:SHOWN]
            ],
            "failed_hooks": [_clipped(record.name, keep_end=True) for record in self.hooks if record.error is not None][
                :SHOWN
            ],
        }
        rounded: dict[str, Any] = _rounded(document)
        for name in ("slowest", "stragglers", "failed_hooks"):
            # Names beyond ASCII take up to six times their length in JSON.
            if len(json.dumps(rounded)) > MOST_DRAIN_BYTES:
                rounded[name] = []
        return rounded


def _listed(what: str, items: Sequence[object], in_all: int) -> str:
    if not items:
        return ""
    more = f" and {in_all - SHOWN} more" if in_all > SHOWN else ""
    return f"{what}: {', '.join(map(str, items[:SHOWN]))}{more}"


def _clipped(text: str, *, keep_end: bool = False) -> str:
    if len(text) <= CLIPPED:
        return text
    return f"…{text[1 - CLIPPED :]}" if keep_end else f"{text[: CLIPPED - 1]}…"


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 3)
        case Mapping():
            return {name: _rounded(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
        case _:
            return value
