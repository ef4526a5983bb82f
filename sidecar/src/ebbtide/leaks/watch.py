"""Looks for leaks now and then, in a thread of its own, and says once what it suspects."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from functools import cached_property, partial
from time import monotonic
from typing import TYPE_CHECKING

from ebbtide.leaks.rules import ADVICE, Rule, Thresholds
from ebbtide.settings import Settings
from ebbtide.stacks.origins import trace_here
from ebbtide.tasks.cancelling import call_in
from ebbtide.tasks.registry import Registry

if TYPE_CHECKING:
    from ebbtide.leaks.findings import Finding, Look
    from ebbtide.leaks.outsiders import Outsiders

logger = logging.getLogger("ebbtide")

SHARE = 0.01
"""Of the time, how much looking may take."""
MOST_SAID = 100
"""Kinds of suspects that the log names: a process that makes up new ones without end shall not fill it."""


class LeakWatch:
    """Look for leaks in one process.

    Args:
        registry: Its work.
        settings: `leak_age_s`, `leak_ignore`, `origins`.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._thresholds = Thresholds(least_age_s=settings.leak_age_s)
        self._ignored = settings.leak_ignore
        self._wanted = settings.origins
        self._origins = False
        self._said: set[tuple[str, str]] = set()
        self._one_at_a_time = threading.Lock()
        self._next_at = 0.0
        self._counts: Mapping[str, int] = dict.fromkeys(map(str, Rule), 0)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many the last look suspected, by rule."""
        return self._counts

    @cached_property
    def _outsiders(self) -> Outsiders:
        from ebbtide.leaks.outsiders import Outsiders

        return Outsiders(self._registry, self._thresholds.least_age_s, self._ignored)

    def settle(self) -> None:
        """Begin; in the loop's thread."""
        self._outsiders.settle()
        if self._wanted:
            self.trace_origins(on=True)

    def stop(self) -> None:
        """Leave no trace in the loop's thread, which calls this."""
        if self._origins:
            trace_here(on=False)

    def trace_origins(self, *, on: bool) -> None:
        """Remember where tasks are created from now on, or do so no more; from any thread."""
        loop = self._registry.loop
        if loop is None:
            self._wanted = on
            return
        self._origins = on
        if self._registry.is_home():
            trace_here(on=on)
        else:
            call_in(loop, partial(trace_here, on=on))

    def patrol(self) -> None:
        """Look, where it is time to and nothing drains; returns at once."""
        self._registry.forget_ended()
        # A drain has its own words for what does not end.
        if self._registry.intake_open and monotonic() >= self._next_at and not self._one_at_a_time.locked():
            threading.Thread(target=self._look_quietly, name="ebbtide-leaks", daemon=True).start()

    def look(self) -> Look:
        """Look now; in a thread that is not the loop's where a lot is in flight."""
        from ebbtide.leaks.findings import Look
        from ebbtide.leaks.suspects import suspects

        with self._one_at_a_time:
            began_at = monotonic()
            in_flight = len(self._registry)
            found = [*suspects(self._registry, self._thresholds), *self._outsiders.find(began_at)]
            ended_at = monotonic()
            look = Look(
                in_flight=in_flight,
                took_s=ended_at - began_at,
                findings=sorted(found, key=lambda finding: -finding.count),
                origins=self._origins,
            )
            self._next_at = ended_at + look.took_s / SHARE
            self._counts = look.counts()
            for finding in look.findings:
                self._say(finding)
            return look

    def view(self, query: Mapping[str, str]) -> str:
        """Look now, and return it as text, or with `format=json` as JSON.

        Raises:
            ValueError: There is no such format.
        """
        if (wanted := query.get("format", "text")) not in {"text", "json"}:
            raise ValueError(f"format: must be text or json, not {wanted!r}")
        look = self.look()
        return json.dumps(look.as_json()) + "\n" if wanted == "json" else "\n".join(look.lines()) + "\n"

    def _look_quietly(self) -> None:
        try:
            self.look()
        except Exception:
            logger.exception("ebbtide: looking for leaks failed")

    def _say(self, finding: Finding) -> None:
        key = (finding.rule, finding.what)
        if key in self._said or len(self._said) >= MOST_SAID:
            return
        self._said.add(key)
        logger.warning("ebbtide: leak suspected: %s: %s", finding, ADVICE[finding.rule])
        if len(self._said) == MOST_SAID:
            logger.warning("ebbtide: the log names no more suspects: /debug/leaks has all")
