"""The process as one worker of its pod: what it says of itself, and what it can be told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ebbtide.admin.views import Views
from ebbtide.leaks.watch import LeakWatch
from ebbtide.lifecycle.conductor import Conductor
from ebbtide.lifecycle.machine import (
    DrainRequested,
    Durations,
    Ordered,
    Reason,
    Source,
    StoreRestarted,
    UndrainRequested,
)
from ebbtide.tasks.registry import Registry

if TYPE_CHECKING:
    from ebbtide.protocol import Order
    from ebbtide.workers.snapshot import Snapshot


class Local:
    """The worker that runs here. Every method may be called from any thread.

    Args:
        conductor: Drives its machine.
        registry: Its work.
        views: What it says of itself.
        leaks: What it suspects.
        ready: Whether it is.
        durations: What a drain may take that brings no durations of its own.
    """

    def __init__(
        self,
        conductor: Conductor,
        registry: Registry,
        views: Views,
        leaks: LeakWatch,
        ready: Callable[[], bool],
        durations: Durations,
    ) -> None:
        self.worker = os.urandom(16).hex()
        self.durations = durations
        self.views = views
        self.conductor = conductor
        self._registry = registry
        self._leaks = leaks
        self._ready = ready
        self._last: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """Look at everything; with a lot of work in flight that takes a while."""
        from ebbtide.workers.snapshot import snapshot_of

        self._last = replace(
            snapshot_of(
                self.worker,
                os.getpid(),
                os.getppid(),
                self.views.report(0, 0),
                self.views.numbers(None),
                awaited=self._registry.awaited(),
            ),
            ready=self._ready(),
        )
        return self._last

    def glance(self) -> Snapshot:
        """Look at what costs nothing: ages and estimates stay as they were."""
        if self._last is None:
            return self.snapshot()
        machine = self.conductor.machine
        report = replace(
            self._last.report,
            state=machine.state,
            generation=machine.generation,
            active=len(self._registry),
            tally=self._registry.tally,
            forced=machine.forced,
        )
        self._last = replace(
            self._last,
            report=report,
            ready=self._ready(),
            awaited=self._registry.awaited(),
            refusals=self._registry.refusals,
        )
        return self._last

    def obey(self, order: Order) -> None:
        self.conductor.call(Ordered(order))

    def drain(self, source: Source, text: str, durations: Durations | None, *, leave: bool) -> None:
        self.conductor.call(DrainRequested(Reason(source, text), durations, leave=leave))

    def undrain(self) -> bool:
        """Take a drain back; False where it cannot be."""
        self.conductor.call(UndrainRequested())
        return not self.conductor.machine.draining

    def store_restarted(self) -> None:
        self.conductor.post(StoreRestarted())

    def answer(self, what: str, arguments: Mapping[str, Any]) -> Any:
        """Answer another worker.

        Raises:
            ValueError: It cannot be answered like that; the message says why.
        """
        match what:
            case "snapshot":
                return self.snapshot().encode()
            case "undrain":
                return self.undrain()
            case "dump":
                return self.views.dump(arguments)
            case "leaks":
                return self._leaks.view(arguments)
            case "trace_origins":
                return self._leaks.trace_origins(on=bool(arguments["on"]))
            case "change_limits":
                return self.views.change_limits(arguments["scope"], arguments["texts"])
            case _:
                raise ValueError(f"what: no such question: {what!r}")
