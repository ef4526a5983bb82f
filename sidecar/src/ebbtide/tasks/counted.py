"""The usual end of a task in the fewest steps: its coroutine runs inside one of ours, which counts it where it returns.

A done-callback would know no more, a turn of the loop later, and costs much more: a handle, a place in the queue of the
loop, a call in its context.
"""

from __future__ import annotations

from collections.abc import Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from ebbtide.tasks.entries import current_entry

if TYPE_CHECKING:
    from ebbtide.tasks.registry import Registry

T = TypeVar("T")

CROWD = 10_000
"""In flight, up to which tasks are counted this way: it takes 240 bytes more for each than a callback does."""
FEW = 64
SAMPLED = 0b111
"""With more than `FEW` in flight, only tasks whose number has none of these bits tell how long they took."""

_set_current = current_entry.set


async def counted(registry: Registry, number: int, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine of a managed task of the home loop, and count its end.

    Args:
        registry: Where it is.
        number: Of the entry.
        coroutine: What to run; found by this name where it has not begun (`frames.unbegun`).
    """
    _set_current(number)
    try:
        result = await coroutine
    except GeneratorExit:
        raise  # thrown away with its loop: nobody is left to count it for
    except BaseException as error:
        registry.ended_in_task(error)
        raise
    if not ended_as_usual(registry, number):
        registry.ended_in_task(None)
    return result


def ended_as_usual(registry: Registry, number: int) -> bool:
    """Count a task of the home loop that returned; False where it takes more than that, and nothing was done."""
    live = registry.live
    if not registry.intake_open or registry.odd or registry.gate.waiters.queue or number not in live:
        return False
    task: Any = live[number]
    scope = task.scope
    if not scope.gate.plain:
        return False
    if not number & SAMPLED or len(live) < FEW:
        scope.durations.append(monotonic() - task.started_at)
    registry.finished += 1
    del live[number]
    # Intake may have closed since it was looked at above.
    if not registry.intake_open:
        registry.look_whether_empty()
    return True
