"""A pod's drain marks: annotations in, times out, and back. Times are RFC 3339, UTC, with milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ebbtide.protocol import Outcome
from ebbtide_operator.core import names
from ebbtide_operator.core.annotations import LONGEST_CANCEL_GRACE_S, LONGEST_DRAIN_S, LONGEST_QUIESCE_S
from ebbtide_operator.core.model import PodView

LAST_YEAR = 9999
LONGEST_BUDGET_S = LONGEST_QUIESCE_S + LONGEST_DRAIN_S + LONGEST_CANCEL_GRACE_S

_EPOCH = datetime.fromtimestamp(0, UTC)


def format_time(at: float) -> str:
    """Return Unix seconds as `2026-11-24T12:00:01.250Z`, rounded to milliseconds."""
    moment = _EPOCH + timedelta(milliseconds=round(at * 1000))
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def format_second(at: float) -> str:
    """Return Unix seconds as `2026-11-24T12:00:01Z`, the fraction cut off: for people and for status."""
    return format_time(float(at // 1))[:-5] + "Z"


def parse_time(text: str) -> float:
    """Return the Unix seconds of an RFC 3339 time with any offset.

    Raises:
        ValueError: It is no such time, names no offset, or is so far away that sums with it cannot be written any more.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"must be a time like 2026-11-24T12:00:01.250Z, not {text!r}") from error
    if moment.tzinfo is None:
        raise ValueError(f"must end with Z or an offset, not {text!r}")
    if not 1 < moment.year < LAST_YEAR:
        raise ValueError(f"must be a time that a drain can have, not {text!r}")
    return (moment - _EPOCH) / timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Marks:
    """What a pod's annotations say of its drain: the fields of the same names of PodView."""

    draining_since: float | None = None
    deadline_at: float | None = None
    released: str | None = None
    deletion_cost: int | None = None
    original_cost: str | None = None


def read_marks(annotations: Mapping[str, str]) -> Marks:
    """Read a pod's marks; a value that cannot be read counts as absent, because a pod must never be held by a typo.

    So does a deadline that no drain can have. Without a deadline the rules fall back on the order, then on the policy.
    """
    since, deadline_at = _time(annotations.get(names.DRAINING_SINCE)), _time(annotations.get(names.DRAIN_DEADLINE))
    # Both are rounded.
    if since is not None and deadline_at is not None and deadline_at > since + LONGEST_BUDGET_S + 0.001:
        deadline_at = None
    return Marks(
        draining_since=since,
        deadline_at=deadline_at,
        released=annotations.get(names.RELEASED),
        deletion_cost=cost(annotations.get(names.DELETION_COST)),
        original_cost=annotations.get(names.ORIGINAL_COST),
    )


def cost(text: str | None) -> int | None:
    """Return a pod deletion cost, or None where Kubernetes would not read one either."""
    if text is None or len(text) > 11:
        return None
    try:
        value = int(text)
    except ValueError:
        return None
    return value if -(2**31) <= value < 2**31 else None


def pin_marks(pod: PodView, since: float, deadline_at: float) -> dict[str, str | None]:
    """Return the annotations that mark a pod as draining and make it its controller's first victim."""
    return {
        names.DRAINING_SINCE: format_time(since),
        names.DRAIN_DEADLINE: format_time(deadline_at),
        names.DELETION_COST: str(names.DRAINING_COST),
        names.ORIGINAL_COST: _own_cost(pod),
    }


def release_marks(pod: PodView, outcome: Outcome) -> dict[str, str | None]:
    """Return the annotations that let a pod go, ahead of every other."""
    return {
        names.RELEASED: outcome.value,
        names.DELETION_COST: str(names.RELEASED_COST),
        names.ORIGINAL_COST: _own_cost(pod),
    }


def return_marks(pod: PodView) -> dict[str, str | None]:
    """Return the annotations that undo the other two: no marks, and the user's own deletion cost; None removes one."""
    changes: dict[str, str | None] = dict.fromkeys(
        (names.DRAINING_SINCE, names.DRAIN_DEADLINE, names.RELEASED, names.ORIGINAL_COST)
    )
    if pod.original_cost is not None:
        changes[names.DELETION_COST] = pod.original_cost or None
    return changes


def _own_cost(pod: PodView) -> str:
    # A second pin or the release after a pin must not take our own cost for the user's.
    if pod.original_cost is not None:
        return pod.original_cost
    return "" if pod.deletion_cost is None else str(pod.deletion_cost)


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        return None
