"""The start of a process as a chain: configuration, pools, checks, intake. The first failure ends it, and undoes it.

Each step lives in a task of its own from its start to its stop, because what is entered in a task (a task group, a
timeout, a context variable) has to be left in the same one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic
from typing import Any

from ebbtide.errors import NotRunning, StartFailed
from ebbtide.lifecycle.hooks import HOOK_S, Hooks

logger = logging.getLogger("ebbtide")

START_S = 30.0
"""Seconds that the start of one step may take."""


class Stage(IntEnum):
    """The order of the start; steps of one stage start in the order in which they were registered."""

    CONFIGURATION = 1
    """Read and check what the rest needs to know."""
    POOLS = 2
    """Open connections."""
    CHECKS = 3
    """Find out whether what this process depends on answers."""
    INTAKE = 4
    """Start what brings work in: listeners, consumers."""


Start = Callable[[], AsyncIterator[object] | AbstractAsyncContextManager[object] | Awaitable[object] | object]


@dataclass(frozen=True, slots=True)
class _Step:
    """One step as it was registered."""

    name: str
    stage: Stage
    function: Callable[[], object]
    start_s: float
    stop_s: float


class StartUp:
    """Run steps in order, once.

    Args:
        stops: Where the stop of each step goes as soon as it has started: whoever runs these in reverse stops the
            chain in reverse.
    """

    def __init__(self, stops: Hooks) -> None:
        self._stops = stops
        self._steps: list[_Step] = []
        self._lives: list[_Life] = []
        self._ran = False
        self._leaving = False
        self._news = asyncio.Event()

    def add(self, function: Start, stage: Stage, start_s: float = START_S, stop_s: float = HOOK_S) -> None:
        """Register a step; `Runtime.on_start` has the arguments."""
        name = getattr(function, "__qualname__", repr(function))
        if self._ran:
            raise NotRunning(f"step {name}: the start is over; register steps before the runtime is entered")
        if inspect.isgeneratorfunction(function):
            raise TypeError(f"step {name}: is a generator function; make it `async def`")
        for argument, value in {"timeout_s": start_s, "stop_timeout_s": stop_s}.items():
            if not value > 0:
                raise ValueError(f"step {name}: {argument}: must be more than 0 seconds, not {value!r}")
        opens = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
        self._steps.append(_Step(name, Stage(stage), opens, start_s, stop_s))

    async def run(self) -> None:
        """Start every step; what has started is stopped by whoever runs the stops.

        Raises:
            StartFailed: A step failed or took too long, or the process was told to leave.
        """
        self._ran = True
        took: list[str] = []
        for step in sorted(self._steps, key=lambda step: step.stage):
            started_at = monotonic()
            await self._start(step)
            took.append(f"{step.name} {monotonic() - started_at:.3g} s")
        if took:
            logger.info("ebbtide: started: %s", ", ".join(took))

    def give_up(self) -> None:
        """End the start where it is: the process was told to leave. In the loop's thread; later it does nothing."""
        self._leaving = True
        self._news.set()

    def begin_anew(self) -> object:
        """Be, in a forked child, a start that was never made; return what must not be thrown away.

        What the parent started is the parent's to stop.
        """
        lives, self._lives = self._lives, []
        for life in lives:
            self._stops.remove(life.stop)
        self._ran = self._leaving = False
        self._news = asyncio.Event()
        return lives

    async def _start(self, step: _Step) -> None:
        life = _Life(step, self._news)
        self._lives.append(life)
        try:
            async with asyncio.timeout(step.start_s):
                while not (life.started or life.task.done() or self._leaving):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise StartFailed(step.name, f"took longer than {step.start_s:g} s") from None
        finally:
            # Also where it has not started: then its stop is to break it off and wait for its cleanup.
            if not life.task.done():
                self._stops.add(life.stop, step.stop_s, step.name)
        if life.started:
            return
        if not life.task.done():
            raise StartFailed(step.name, "the process was told to leave before it had started")
        if life.task.cancelled():
            raise StartFailed(step.name, "was cancelled")
        failure = life.task.exception()
        raise StartFailed(step.name, repr(failure)) from failure


class _Life:
    """One step, from its start to its stop."""

    def __init__(self, step: _Step, news: asyncio.Event) -> None:
        self.started = False
        self._name = step.name
        self._news = news
        self._stopping = asyncio.Event()
        self.task: asyncio.Task[None] = asyncio.create_task(self._live(step.function), name=f"ebbtide-step-{step.name}")
        self.task.add_done_callback(self._ended)

    async def stop(self) -> None:
        self._stopping.set()
        if not self.started:
            self.task.cancel("the start was given up")
        try:
            await self.task
        except asyncio.CancelledError:
            if not self.task.done():
                raise

    async def _live(self, function: Callable[[], Any]) -> None:
        opened = function()
        if hasattr(opened, "__aenter__"):
            async with opened:
                self._has_started()
                await self._stopping.wait()
            return
        if inspect.isawaitable(opened):
            await opened
        self._has_started()

    def _has_started(self) -> None:
        self.started = True
        self._news.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._news.set()
        if not task.cancelled() and task.exception() is not None and self.started and not self._stopping.is_set():
            logger.error("ebbtide: the step %s ended before its stop", self._name, exc_info=task.exception())
