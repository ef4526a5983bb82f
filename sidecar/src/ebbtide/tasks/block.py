"""A `with` block that counts as work in flight, in the task or the thread that runs it."""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError
from contextvars import Token
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import Self

from ebbtide.errors import Refused
from ebbtide.tasks.counted import SAMPLED_EVERY_S
from ebbtide.tasks.entries import Entry, current_entry, task_here
from ebbtide.tasks.registry import BLOCK_BEGAN

if sys.version_info < (3, 12):
    # What `current_task` asks there, which is written in Python; that version gets fixes for security alone.
    _task_in = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]  # noqa: SLF001
else:
    _task_in = asyncio.current_task

# Bound once: a method of a C type is looked up anew at each call otherwise.
_set_current, _reset_current = current_entry.set, current_entry.reset


class Block(Entry):
    """What `Scope.track` returns: an entry from the start of a `with` block to its end.

    Who makes one sets `scope`, `name` and `meta`: an `__init__` of its own would be a tenth of what a block costs.
    """

    __slots__ = ("_entered", "_sampled")

    __init__ = object.__init__

    kind = "block"
    _entered: Token[int] | None
    _sampled: bool

    def __enter__(self) -> Self:
        scope = self.scope
        registry = scope.registry
        self.thread = thread = get_ident()
        if thread == registry.home:
            # Cheaper than asking for the loop that runs, for which asyncio looks up the process id first.
            self.task = _task_in(registry.loop)
            registry.blocks_begun += 1
        else:
            self.task = task_here()
            registry.count(BLOCK_BEGAN)
        self.number = number = next(registry.numbers)
        self.started_at = now = monotonic()
        if now >= scope.next_sample_at:
            scope.sampled_at, scope.next_sample_at = now, now + SAMPLED_EVERY_S
            self._sampled = True
        else:
            self._sampled = False
        registry.live[number] = self
        if not registry.intake_open:
            try:
                registry.question(number, scope, block=True)
            except Refused:
                self.task = None
                raise
        self._entered = _set_current(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _reset_current(self._entered)  # type: ignore[arg-type]
        except ValueError:  # in an async generator that is closed in another context than it began in
            _set_back(self._entered)  # type: ignore[arg-type]
        # The task may refer to its block, and the context to whoever keeps that.
        self.task = self._entered = None
        scope, number = self.scope, self.number
        registry = scope.registry
        if kind is None:
            live = registry.live
            if self._sampled:
                scope.durations.append(monotonic() - self.started_at)
            if registry.intake_open and not registry.odd and get_ident() == registry.home and number in live:
                # `Registry.end` spelled out for the usual case.
                registry.blocks_finished += 1
                del live[number]
                # Intake may have closed since it was looked at above.
                if not registry.intake_open:
                    registry.look_whether_empty()
            else:
                registry.end(number, "finished", None)
        else:
            registry.end(number, "cancelled" if issubclass(kind, CancelledError) else "failed", None)

    def around(self) -> int:
        """Return the number of the entry that this block is a part of; 0: of none. From any thread."""
        entered = self._entered  # one look: it may be left meanwhile
        return 0 if entered is None else _before(entered)


def _set_back(entered: Token[int]) -> None:
    current_entry.set(_before(entered))


def _before(entered: Token[int]) -> int:
    before = entered.old_value
    return before if isinstance(before, int) else 0  # else it was not set at all
