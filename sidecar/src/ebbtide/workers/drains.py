"""What the drain of a pod was like, from what those of its workers were. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ebbtide.lifecycle.drainreport import SHOWN
from ebbtide.vocabulary import MOST_DRAIN_BYTES, Outcome

WORST_LAST = (Outcome.RETURNED, Outcome.CLEAN, Outcome.CANCELLED, Outcome.ABANDONED)


def merged_drain(drains: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the digest of a pod's drain: that of the slowest worker, with what adds up added up.

    Args:
        drains: Digests of the workers' drains; those of workers that are gone are gone.

    Returns:
        At most `MOST_DRAIN_BYTES` of JSON; None where there is nothing to go by.
    """
    if not drains:
        return None
    slowest = max(drains, key=lambda drain: drain["took_s"])
    counts: Counter[str] = Counter()
    for drain in drains:
        counts.update(drain["counts"])
    merged: dict[str, Any] = {
        **slowest,
        "outcome": max((drain["outcome"] for drain in drains), key=_badness),
        "started_at": min(drain["started_at"] for drain in drains),
        "counts": dict(counts),
        "slowest": sorted(_all(drains, "slowest"), key=lambda finisher: -finisher["held_s"])[:SHOWN],
        "stragglers": sorted(_all(drains, "stragglers"), key=lambda late: late["outcome"] is not None)[:SHOWN],
        "failed_hooks": _all(drains, "failed_hooks")[:SHOWN],
    }
    for name in ("active_at_start", "late_arrivals", "stragglers_in_all"):
        merged[name] = sum(drain[name] for drain in drains)
    for name in ("slowest", "stragglers", "failed_hooks"):
        if len(json.dumps(merged)) > MOST_DRAIN_BYTES:
            merged[name] = []
    return merged


def _badness(outcome: str | None) -> int:
    return -1 if outcome is None else WORST_LAST.index(Outcome(outcome))


def _all(drains: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [item for drain in drains for item in drain[name]]
