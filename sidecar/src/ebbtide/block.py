"""A `with` block that counts as work in flight, in the task or the thread that runs it."""

from __future__ import annotations

from asyncio import CancelledError, current_task
from collections.abc import Mapping
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ebbtide.counted import FEW, SAMPLED
from ebbtide.entries import Entry, current_entry
from ebbtide.errors import Refused
from ebbtide.registry import Registry

if TYPE_CHECKING:
    from ebbtide.scope import Scope


class Block(Entry):
    """What `Scope.track` returns: an entry from the start of a `with` block to its end."""

    __slots__ = ("_before", "_registry")

    def __init__(  # the entry's own `__init__` is for one that lives already
        self, registry: Registry, scope: Scope, name: str | None, meta: Mapping[str, Any] | None
    ) -> None:
        self._registry = registry
        self.kind = "block"
        self.scope = scope
        self.name = name or scope.name
        self.meta = meta
        self.task = None

    def __enter__(self) -> Self:
        registry = self._registry
        self.number = number = next(registry.numbers)
        self.started_at = monotonic()
        registry.blocks.add(number)
        registry.live[number] = self
        if not registry.intake_open:
            try:
                registry.question(number, self.scope, block=True)
            except Refused:
                registry.blocks.discard(number)
                raise
        if get_ident() == registry.home:
            # Cheaper than asking for the loop that runs, for which asyncio looks up the process id first.
            self.task = current_task(registry.loop)
        else:
            try:
                self.task = current_task()
            except RuntimeError:  # no loop in this thread
                self.task = None
        self._before = current_entry.get()
        current_entry.set(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Restored by value: in an async generator the token belongs to another context.
        current_entry.set(self._before)
        self.task = None
        registry, number = self._registry, self.number
        if kind is None:
            live = registry.live
            if not number & SAMPLED or len(live) < FEW:
                self.scope.durations.append(monotonic() - self.started_at)
            if registry.intake_open and not registry.odd and get_ident() == registry.home and number in live:
                # `Registry.end` spelled out for the usual case.
                registry.finished += 1
                registry.withdraw(number)
                registry.blocks.discard(number)
            else:
                registry.end(number, "finished", None)
        else:
            registry.end(number, "cancelled" if issubclass(kind, CancelledError) else "failed", None)
