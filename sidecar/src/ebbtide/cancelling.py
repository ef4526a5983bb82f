"""Cancelling a crowd: each task once, in portions, in the thread of its loop."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ebbtide.entries import Entry, Live, task_of
from ebbtide.protection import cancel_softly
from ebbtide.registry import Registry

logger = logging.getLogger("ebbtide")

CHUNK = 250
"""Tasks cancelled in one turn of the loop: a hundred thousand at once would stop it for most of a second."""

Portion = Sequence[tuple[Live, asyncio.Task[Any]]]


def cancel_everywhere(registry: Registry, entries: Sequence[Live], reason: str, grace_s: float) -> None:
    """Cancel entries, from any thread; a loop that is blocked does it when it goes on.

    Args:
        registry: Where they are.
        entries: Which.
        reason: For the tasks, and for who reads their errors.
        grace_s: Seconds that they have for their end.
    """
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[Live, asyncio.Task[Any]]]] = defaultdict(list)
    for item, task in _tasks_of(entries):
        by_loop[task.get_loop()].append((item, task))
    for loop, portion in by_loop.items():
        call_in(loop, partial(_cancel, registry, portion, reason, grace_s))


def cancel_here(registry: Registry, chosen: Sequence[Live], reason: str) -> None:
    """Cancel entries of the loop that runs this thread."""
    _cancel(registry, _tasks_of(chosen), reason, registry.grace_s)


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


def _tasks_of(entries: Sequence[Live]) -> Portion:
    """Pair each task with one of its entries: a task with several blocks is still cancelled once."""
    found: dict[asyncio.Task[Any], Live] = {}
    for item in entries:
        task = task_of(item)
        if task is not None and not task.done():
            found.setdefault(task, item)
    return [(item, task) for task, item in found.items()]


def _cancel(registry: Registry, portion: Portion, reason: str, grace_s: float) -> None:
    for item, task in portion[:CHUNK]:
        # What ended while it waited for its turn may be a task that goes on without its block.
        if item.number in registry.live and not task.done() and not registry.cancelled_lately(item.number):
            registry.mark_cancelled(item)
            if isinstance(item, Entry):
                item.grace_s = grace_s
            cancel_softly(task, partial(_deliver, task, reason), grace_s)
    if len(portion) > CHUNK:
        asyncio.get_running_loop().call_soon(_cancel, registry, portion[CHUNK:], reason, grace_s)


def _deliver(task: asyncio.Task[Any], reason: str) -> None:
    if not task.done():
        task.cancel(reason)
