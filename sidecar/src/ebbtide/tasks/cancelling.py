"""Cancelling a crowd: each task once, in portions, in the thread of its loop."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ebbtide.tasks.entries import Entry, Live, task_of
from ebbtide.tasks.protection import cancel_softly
from ebbtide.tasks.registry import Registry

logger = logging.getLogger("ebbtide")

CHUNK = 100
"""Tasks cancelled in one turn of the loop: a hundred thousand at once would stop it for most of a second."""


def cancel_everywhere(registry: Registry, entries: Sequence[Live], reason: str, grace_s: float) -> None:
    """Cancel entries, from any thread; a loop that is blocked does it when it goes on.

    Args:
        registry: Where they are.
        entries: Which.
        reason: For the tasks, and for who reads their errors.
        grace_s: Seconds that they have for their end.
    """
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Live]] = defaultdict(list)
    for item in entries:
        task = task_of(item)
        if task is not None:
            by_loop[task.get_loop()].append(item)
    for loop, crowd in by_loop.items():
        call_in(loop, partial(_cancel, registry, crowd, reason, grace_s))


def cancel_here(registry: Registry, chosen: Sequence[Live], reason: str) -> None:
    """Cancel entries of the loop that runs this thread."""
    _cancel(registry, chosen, reason, registry.grace_s)


def cancel_by_id(registry: Registry, number: int, reason: str) -> bool:
    """Cancel one entry, from any thread; False where none of that number is in flight, or it is work in a thread.

    One that was cancelled and still cleans up is left to that.
    """
    item = registry.live.get(number)
    task = None if item is None else task_of(item)
    # One that has ended is in flight until its callbacks have run, a turn of the loop later.
    if item is None or task is None or task.done():
        return False
    cancel_everywhere(registry, [item], reason, registry.grace_s)
    return True


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call a function in a loop's thread; a loop that is closed has nothing left to call it for."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        logger.debug("ebbtide: the event loop is closed")


def _cancel(registry: Registry, crowd: Sequence[Live], reason: str, grace_s: float) -> None:
    _cancel_portion(registry, list(crowd), set(), reason, grace_s)


def _cancel_portion(registry: Registry, crowd: list[Live], asked: set[int], reason: str, grace_s: float) -> None:
    """Cancel some of a crowd, and the rest in the turns that follow.

    It keeps nobody who ended: a hundred thousand ended tasks would set the garbage collector to work.

    Args:
        registry: Where they are.
        crowd: Who is left; this takes them out.
        asked: The ids of the tasks that had their turn: one with several blocks is cancelled once. No id is used again,
            since all of these tasks lived when the crowd was chosen.
        reason: For the tasks.
        grace_s: Seconds that they have for their end.
    """
    for _ in range(min(CHUNK, len(crowd))):
        # The youngest first: the timers of the oldest are the first that are due, and the loop would take them out of
        # its heap one by one. Once half of all timers are cancelled it makes the heap anew instead.
        item = crowd.pop()
        task = task_of(item)
        # What ended while it waited for its turn may be a task that goes on without its block.
        if task is None or task.done() or item.number not in registry.live or id(task) in asked:
            continue
        asked.add(id(task))
        if not registry.marks.lately(task):
            registry.mark_cancelled(task)
            if isinstance(item, Entry):
                item.grace_s = grace_s
            cancel_softly(task, partial(_deliver, task, reason), grace_s)
    if crowd:
        asyncio.get_running_loop().call_soon(_cancel_portion, registry, crowd, asked, reason, grace_s)


def _deliver(task: asyncio.Task[Any], reason: str) -> None:
    if not task.done():
        task.cancel(reason)
