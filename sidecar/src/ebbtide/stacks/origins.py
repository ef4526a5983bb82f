"""Where tasks were created, and what they run.

Python itself remembers the lines that made a coroutine, when it is asked to: nothing is added to the start of a task,
and it works for tasks that the library never saw. It costs every coroutine of the thread, awaited ones too, about half
a microsecond, so somebody has to ask (`Runtime.trace_origins`, `EBBTIDE_ORIGINS`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from ebbtide.stacks.frames import ASYNCIO, OWN, given_to

DEPTH = 2
"""Lines that are remembered: the coroutine of supervised work is made by the library, for the line that called it."""


def trace_here(*, on: bool) -> None:
    """Remember for coroutines that are made from now on in this thread where that was, or do so no more.

    What asyncio's debug mode asks for, which is more, is left alone.
    """
    asked = sys.get_coroutine_origin_tracking_depth()
    if asked <= DEPTH:
        sys.set_coroutine_origin_tracking_depth(DEPTH if on else 0)


@contextmanager
def tracing() -> Iterator[None]:
    """Remember in this thread where coroutines are made, until the block ends."""
    before = sys.get_coroutine_origin_tracking_depth()
    sys.set_coroutine_origin_tracking_depth(max(before, DEPTH))
    try:
        yield
    finally:
        sys.set_coroutine_origin_tracking_depth(before)


def created_at(task: asyncio.Task[Any]) -> str:
    """Return the line that made the coroutine of a task; empty where nobody asked at that time."""
    inner: Any = task.get_coro()
    while inner is not None:
        for file, line, name in getattr(inner, "cr_origin", None) or ():
            if not file.startswith((OWN, ASYNCIO)):
                return f"{file}:{line} in {name}"
        if not _is_own(inner):
            return ""
        inner = inner.cr_await or given_to(inner)
    return ""


def code_of(task: asyncio.Task[Any]) -> CodeType | None:
    """Return what a task was started for, behind what the library wraps it in; None where it is not Python."""
    outer: Any = task.get_coro()
    inner = outer
    while inner is not None and _is_own(inner):
        inner = inner.cr_await or given_to(inner)
    for coroutine in (inner, outer):
        code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
        if isinstance(code, CodeType):
            return code
    return None


def _is_own(coroutine: Any) -> bool:
    code = getattr(coroutine, "cr_code", None)
    return code is not None and code.co_filename.startswith(OWN)
