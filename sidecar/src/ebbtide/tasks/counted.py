"""The usual end of a task in the fewest steps: its coroutine runs inside one of ours, which counts it where it returns.

A done-callback would know no more, a turn of the loop later, and costs much more: a handle, a place in the queue of the
loop, a call in its context.
"""

from __future__ import annotations

from collections.abc import Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from ebbtide.tasks.entries import current_entry, task_here

if TYPE_CHECKING:
    from ebbtide.tasks.entries import ManagedTask
    from ebbtide.tasks.scope import Scope

T = TypeVar("T")

CROWD = 10_000
"""In flight, up to which tasks are counted this way: it takes 240 bytes more for each than a callback does."""
FEW = 64
"""In flight, below which each task tells how long it took."""
SAMPLED = 0b111
"""Of a crowd only tasks whose number has none of these bits tell how long they took."""
SAMPLED_EVERY_S = 0.0001
"""How far apart the starts are at least of what tells how long it took, in one scope: chosen at its start, what takes
long is as likely among them as what is short."""

_set_current = current_entry.set


async def counted(scope: Scope, number: int, coroutine: Coroutine[Any, Any, T], sampled_at: float | None) -> T:
    """Run the coroutine of a managed task of the home loop, and count its end.

    Args:
        scope: Whose task it is.
        number: Of the entry.
        coroutine: What to run; found by this name where it has not begun (`frames.unbegun`).
        sampled_at: When it started, monotonic seconds, where it shall tell how long it took; None: it need not.
    """
    _set_current(number)
    try:
        result = await coroutine
    except GeneratorExit:
        # Mostly it is thrown away with its loop, and nobody is left to count it for.
        if _runs(number):
            scope.registry.raised_in_task()
        raise
    except BaseException:
        scope.registry.raised_in_task()
        raise
    registry = scope.registry
    # `ended_as_usual` spelled out: a call costs as much as half of what it does.
    if registry.intake_open and not registry.odd and not registry.queue and scope.gate.plain:
        if sampled_at is not None:
            scope.durations.append(monotonic() - sampled_at)
        registry.finished += 1
        try:
            del registry.live[number]
        except KeyError:  # the parent's, in a forked child
            registry.finished -= 1
            return result
        # Intake may have closed since it was looked at above.
        if not registry.intake_open:
            registry.look_whether_empty()
    else:
        registry.ended_in_task(None)
    return result


def _runs(number: int) -> bool:
    """Say whether it is a task with this number that runs here."""
    return getattr(task_here(), "number", 0) == number


def ended_as_usual(task: ManagedTask) -> bool:
    """Count a task of the home loop that returned; False where it takes more than that, and nothing was done."""
    scope, number = task.scope, task.number
    registry = scope.registry
    live = registry.live
    if not registry.intake_open or registry.odd or registry.queue or not scope.gate.plain or number not in live:
        return False
    if not number & SAMPLED:
        scope.durations.append(monotonic() - task.started_at)
    registry.finished += 1
    del live[number]
    if not registry.intake_open:
        registry.look_whether_empty()
    return True
