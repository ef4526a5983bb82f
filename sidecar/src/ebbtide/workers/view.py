"""What the admin server asks, answered for the whole pod."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ebbtide.admin.exposition import Numbers
from ebbtide.admin.server import AdminView
from ebbtide.lifecycle.drainreport import DrainReport
from ebbtide.lifecycle.machine import Source
from ebbtide.vocabulary import PodState
from ebbtide.workers.snapshot import merged_numbers, merged_report

if TYPE_CHECKING:
    from ebbtide.workers.hub import Hub

ANSWER_S = 5.0
"""How long the other workers have to answer."""


class PodView:
    """The view of the admin server: of this process where it is alone, of all workers where it leads.

    Args:
        process: This process.
        hub: Returns the way to the others; None: there is none.
    """

    def __init__(self, process: AdminView, hub: Callable[[], Hub | None]) -> None:
        self._process = process
        self._hub = hub

    def _led(self) -> Hub | None:
        """Return the hub where there are others."""
        hub = self._hub()
        return None if hub is None or hub.alone else hub

    @property
    def state(self) -> PodState:
        hub = self._led()
        return self._process.state if hub is None else hub.state()

    @property
    def ready(self) -> bool:
        hub = self._led()
        return self._process.ready if hub is None else any(each.ready for each in hub.workers())

    def alive(self) -> bool:
        return self._process.alive()

    def drain_view(self) -> Mapping[str, Any]:
        own, hub = self._process.drain_view(), self._led()
        if hub is None:
            return own
        workers = hub.workers()
        report = merged_report(workers, hub.gone(), sequence=0, boot_id="", phase_revision=0)
        numbers = merged_numbers(Numbers(report.state, 0, 0.0), workers, hub.gone())
        return {
            **own,
            "state": report.state.value,
            "active": report.active,
            "oldest_age_s": report.oldest_age_s,
            "eta_s": report.eta_s,
            "forced": report.forced,
            "tally": report.tally,
            "late_arrivals": numbers.late_arrivals,
            "workers": [
                {"pid": each.pid, "state": each.report.state.value, "active": each.report.active} for each in workers
            ],
        }

    def drain_report(self) -> DrainReport | None:
        """Return the report of the worker that leads; every worker logs its own."""
        return self._process.drain_report()

    def dump(self, query: Mapping[str, str]) -> str:
        """Return what is in flight in every worker, one after the other; JSON: one document per line."""
        return self._of_all("dump", self._process.dump(query), query)

    def leaks_view(self, query: Mapping[str, str]) -> str:
        """Return what looks like a leak in every worker, one after the other; JSON: one document per line."""
        return self._of_all("leaks", self._process.leaks_view(query), query)

    def _of_all(self, what: str, own: str, query: Mapping[str, str]) -> str:
        hub = self._led()
        if hub is None:
            return own
        pids = {each.worker: each.pid for each in hub.workers()}
        texts = {os.getpid(): own}
        for worker, answer in hub.ask(what, query, ANSWER_S).items():
            texts[pids.get(worker, 0)] = answer.get("answer", answer.get("error", ""))
        if query.get("format") in {"json", "collapsed"}:
            return "".join(text if text.endswith("\n") else f"{text}\n" for text in texts.values())
        return "\n".join(f"worker {pid}\n{text}" for pid, text in texts.items())

    def trace_origins(self, on: bool) -> None:
        """Remember where tasks are created, in every worker."""
        self._process.trace_origins(on)
        hub = self._led()
        if hub is not None:
            hub.ask("trace_origins", {"on": on}, ANSWER_S)

    def cancel(self, number: int, reason: str) -> bool:
        hub = self._led()
        if hub is not None:
            count = len(hub.workers())
            raise ValueError(
                f"id: every worker has its own, and this pod has {count}; call runtime.cancel in the worker"
            )
        return self._process.cancel(number, reason)

    def request_drain(self, source: Source, text: str, *, leave: bool) -> None:
        hub = self._hub()
        if hub is None:
            self._process.request_drain(source, text, leave=leave)
        else:
            hub.drain(source, text, leave=leave)

    def request_undrain(self) -> bool:
        hub = self._hub()
        return self._process.request_undrain() if hub is None else hub.undrain()

    def wait_drained(self, timeout_s: float) -> bool:
        hub = self._hub()
        return self._process.wait_drained(timeout_s) if hub is None else hub.wait_done(timeout_s)

    def limits_view(self) -> Sequence[Mapping[str, Any]]:
        return self._process.limits_view()

    def change_limits(self, scope: str, texts: Mapping[str, str]) -> Mapping[str, Any]:
        """Change limits in every worker: they are those of a process, not of the pod."""
        changed = self._process.change_limits(scope, texts)
        hub = self._led()
        if hub is not None:
            hub.ask("change_limits", {"scope": scope, "texts": dict(texts)}, ANSWER_S)
        return changed

    def sample(self) -> Numbers:
        own, hub = self._process.sample(), self._led()
        return own if hub is None else merged_numbers(own, hub.workers(), hub.gone())
