"""Tasks of the application that no scope knows: a drain does not wait for them, and nobody else does.

Not meant are tasks that were there before the runtime, those whose function is the library's, asyncio's or a package's
(a server has its own), and those whose end some work in flight is told of: the children of a `TaskGroup`, of `gather`
or `wait_for`, or a task that is awaited.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import defaultdict
from collections.abc import Collection
from fnmatch import fnmatch
from types import CodeType
from typing import Any

from ebbtide.leaks.findings import EXAMPLES, Finding, Group
from ebbtide.leaks.rules import Rule
from ebbtide.stacks.frames import Step, frames_of_task, is_applications, place_of, stack_of
from ebbtide.stacks.origins import code_of, created_at
from ebbtide.stacks.waits import callbacks_of
from ebbtide.tasks.entries import Entry, ManagedTask, current_entry
from ebbtide.tasks.registry import Registry

WITNESSES = 8
"""Tasks of each kind whose age is watched: nobody else knows when they began."""

Task = asyncio.Task[Any]


class Outsiders:
    """Look for them, again and again.

    Args:
        registry: Of those that scopes know.
        least_age_s: Younger ones are not meant: they may be on their way.
        ignore: Patterns of names of tasks or functions that are not meant either.
    """

    def __init__(self, registry: Registry, least_age_s: float, ignore: Collection[str]) -> None:
        self._registry = registry
        self._least_age_s = least_age_s
        self._ignore = ignore
        self._before: weakref.WeakSet[Task] = weakref.WeakSet()
        self._witnesses: dict[CodeType, list[tuple[weakref.ref[Task], float]]] = {}

    def settle(self) -> None:
        """Take note of the tasks that are there already; in the loop's thread."""
        self._before = weakref.WeakSet(asyncio.all_tasks())

    def find(self, now: float) -> list[Finding]:
        """Return what is suspected; `now` is monotonic seconds. From any thread, one at a time."""
        if self._registry.loop is None:
            return []
        kinds: defaultdict[CodeType, list[Task]] = defaultdict(list)
        known = {item.task for item in self._registry.entries() if isinstance(item, Entry)}
        for task in asyncio.all_tasks(self._registry.loop):
            if not isinstance(task, ManagedTask) and task not in known and task not in self._before:
                code = code_of(task)
                if code is not None and self._is_meant(task, code):
                    kinds[code].append(task)
        ages = self._ages(kinds, now)
        return [_describe(code, kinds[code], age_s) for code, age_s in ages.items() if age_s >= self._least_age_s]

    def _is_meant(self, task: Task, code: CodeType) -> bool:
        if not is_applications(code):
            return False
        if any(fnmatch(name, pattern) for pattern in self._ignore for name in (task.get_name(), code.co_qualname)):
            return False
        # Callbacks are called in the context of who asked for them.
        return not any(
            context is not None and context.get(current_entry, 0) in self._registry.live
            for _, context in callbacks_of(task)
        )

    def _ages(self, kinds: dict[CodeType, list[Task]], now: float) -> dict[CodeType, float]:
        """Return for each kind how long one of its tasks has been there at least."""
        before, self._witnesses = self._witnesses, {}
        for code, tasks in kinds.items():
            here = set(tasks)
            # Those that ended meanwhile give their place to others.
            kept = [(ref, seen_at) for ref, seen_at in before.get(code, ()) if ref() in here]
            here.difference_update([ref() for ref, _ in kept])
            new = [(weakref.ref(task), now) for task in list(here)[: WITNESSES - len(kept)]]
            self._witnesses[code] = kept + new
        return {code: now - min(seen for _, seen in found) for code, found in self._witnesses.items()}


def _describe(code: CodeType, tasks: list[Task], age_s: float) -> Finding:
    group = Group(Rule.OUTSIDE, str(Step(code, code.co_firstlineno)), len(tasks), age_s)
    group.names = sorted(task.get_name() for task in tasks)[:EXAMPLES]
    group.waits_at = place_of(stack_of(frames_of_task(tasks[0])))
    group.origins.update(created_at(task) for task in tasks)
    return group.finding()
