"""The words of the protocol: what pods and the operator call things.

Apart from its records: every process needs the words, and only one that speaks to an operator the records.
"""

from __future__ import annotations

from enum import StrEnum

DEFAULT_PREFIX = "/ebbtide/v1"


class Desired(StrEnum):
    """What the operator wants of a pod."""

    SERVE = "serve"
    DRAIN = "drain"
    CANCEL = "cancel"


class PodState(StrEnum):
    """Where a pod stands on the way from its start to its end (`lifecycle/machine.py` has the rules)."""

    STARTING = "Starting"
    SERVING = "Serving"
    QUIESCING = "Quiescing"
    DRAINING = "Draining"
    CANCELLING = "Cancelling"
    DRAINED = "Drained"
    EXITING = "Exiting"


DRAIN_STATES = frozenset({PodState.QUIESCING, PodState.DRAINING, PodState.CANCELLING, PodState.DRAINED})
"""Where a drain has begun and can still be seen: the last step has no way back."""


class RolloutPhase(StrEnum):
    """What a workload is going through, as its own spec and status say."""

    STABLE = "Stable"
    ROLLING_OUT = "RollingOut"
    ROLLING_BACK = "RollingBack"
    SCALING_DOWN = "ScalingDown"
    PAUSED = "Paused"


class Outcome(StrEnum):
    """How a pod's drain ended."""

    CLEAN = "clean"
    """Every task ended by itself."""
    CANCELLED = "cancelled"
    """Some tasks were cancelled at the drain timeout, and ended."""
    ABANDONED = "abandoned"
    """Some tasks were still running when the budget was spent."""
    UNKNOWN = "unknown"
    """The deadline passed without a word from the pod."""
    RETURNED = "returned"
    """The pod was told to serve again before it was drained."""
    LOST = "lost"
    """The pod went away in mid-drain: a forced delete, a lost node, a person's delete."""


TASK_OUTCOMES = ("finished", "failed", "timed_out", "cancelled", "requeued", "abandoned", "refused")
"""How a task ends: the keys of a tally."""

MOST_DRAIN_BYTES = 2048
"""Of the JSON that a report may say about its drain: thousands of them are kept in the history."""
