"""When heartbeats count as missing: a rule without a clock."""

from __future__ import annotations

MISSED_BEATS = 3
"""So many intervals of silence make a task stale: one beat may be late, two may be bad luck."""


def missed(heartbeat_s: float | None, beat_age_s: float | None) -> bool:
    """Say whether heartbeats are missing.

    Args:
        heartbeat_s: Seconds between two that are promised; None: none are.
        beat_age_s: Seconds since the last one; None: nobody looks for any.
    """
    return heartbeat_s is not None and beat_age_s is not None and beat_age_s > MISSED_BEATS * heartbeat_s
