"""What a look for leaks found, grouped by what runs: for the log, for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ebbtide.leaks.rules import ADVICE, Rule

EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Work of one kind that one rule suspects.

    Attributes:
        rule: Which one.
        what: The function that runs, or for blocks and threads their scope.
        count: How many.
        oldest_s: Age of the oldest, in seconds; for tasks outside any scope at least that.
        why: The figures that the rule went by, of the oldest.
        scopes: Where most of them are, three at most.
        ids: Of three of them, for `Runtime.cancel`; none for tasks outside any scope.
        names: Of the same ones.
        waits_at: The line where the oldest waits.
        created_at: The line that created most of them; empty where that was not asked for (`Runtime.trace_origins`).
    """

    rule: Rule
    what: str
    count: int
    oldest_s: float
    why: str
    scopes: Sequence[str] = ()
    ids: Sequence[int] = ()
    names: Sequence[str] = ()
    waits_at: str = ""
    created_at: str = ""

    def __str__(self) -> str:
        """Return it on one line, for the log."""
        return "; ".join([f"{self.count} {self.rule}, the oldest {self.oldest_s:.1f} s: {self.what}", *self.details()])

    def details(self) -> list[str]:
        """Return what more is known, in pieces of text."""
        pieces = [
            ("", self.why),
            ("in ", ", ".join(self.scopes)),
            ("waits at ", self.waits_at),
            ("created at ", self.created_at),
            ("such as ", ", ".join(self.names)),
        ]
        return [before + text for before, text in pieces if text]


@dataclass(slots=True)
class Group:
    """Suspects of one rule and one kind, while they are collected."""

    rule: Rule
    what: str
    count: int = 0
    oldest_s: float = -1.0
    why: str = ""
    waits_at: str = ""
    scopes: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def finding(self) -> Finding:
        """Return what was collected."""
        origin = next((place for place, _ in self.origins.most_common(2) if place), "")
        return Finding(
            rule=self.rule,
            what=self.what,
            count=self.count,
            oldest_s=self.oldest_s,
            why=self.why,
            scopes=[name for name, _ in self.scopes.most_common(EXAMPLES)],
            ids=self.ids,
            names=self.names,
            waits_at=self.waits_at,
            created_at=origin,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at everything in flight.

    Attributes:
        in_flight: Entries that were looked at.
        took_s: Seconds that it took.
        findings: What is suspected, the most numerous first.
        origins: Whether it is remembered where tasks are created.
    """

    in_flight: int
    took_s: float
    findings: Sequence[Finding]
    origins: bool

    def counts(self) -> dict[str, int]:
        """Return how many are suspected by each rule; each is suspected by one at most."""
        counts = dict.fromkeys(map(str, Rule), 0)
        for finding in self.findings:
            counts[finding.rule] += finding.count
        return counts

    def lines(self) -> Iterator[str]:
        """Return the text for people."""
        suspected = sum(finding.count for finding in self.findings)
        yield f"{suspected} suspected, {self.in_flight} in flight, {len(self.findings)} kinds"
        for finding in self.findings:
            yield f"{finding.count:>8}  {finding.rule:<10} oldest {finding.oldest_s:>9.1f} s  {finding.what}"
            yield from (f"          {piece}" for piece in finding.details())
            yield f"          ({ADVICE[finding.rule]})"
        if self.findings and not self.origins:
            yield "to learn where tasks are created from now on: POST /debug/leaks?origins=on"

    def as_json(self) -> dict[str, Any]:
        """Return it as a document."""
        return {
            "in_flight": self.in_flight,
            "took_s": round(self.took_s, 6),
            "origins": self.origins,
            "counts": self.counts(),
            "findings": [asdict(finding) for finding in self.findings],
        }
