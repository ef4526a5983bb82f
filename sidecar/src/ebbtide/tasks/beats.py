"""Heartbeats: how work says that it is alive."""

from __future__ import annotations

import weakref
from time import monotonic
from typing import TYPE_CHECKING, cast

from ebbtide.tasks.entries import ManagedTask, current_entry

if TYPE_CHECKING:
    from ebbtide.tasks.block import Block
    from ebbtide.tasks.registry import Registry

_known: tuple[weakref.ref[Registry], ...] = ()


def know(registry: Registry) -> None:
    """Take heartbeats for what is in flight there, as long as it lasts."""
    global _known  # noqa: PLW0603 (replaced as a whole: it is read in other threads)
    _known = (*(reference for reference in _known if reference() is not None), weakref.ref(registry))


def heartbeat() -> None:
    """Say that the unit of work that runs here is alive; cheap, from any thread.

    Work of a scope with `heartbeat_s` is stale while it has been silent for three times as long. A helper task that it
    started itself speaks for it, and so does a block in it. Outside of any work nothing happens.
    """
    number = current_entry.get()
    while number:
        around = 0
        for reference in _known:
            registry = reference()
            if registry is not None and (item := registry.live.get(number)) is not None:
                registry.beats[number] = monotonic()
                if not isinstance(item, ManagedTask) and item.kind == "block":
                    around = cast("Block", item).around()
        number = around
