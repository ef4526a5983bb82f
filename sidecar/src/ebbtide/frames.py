"""Where work is: the innermost frame of a task or a thread, found by walking, which costs about a microsecond."""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import Any

DEEPEST = 200
"""Frames that are walked at most: a chain that is longer is a loop, or of no interest at its end."""


def frame_of(task: asyncio.Task[Any]) -> FrameType | None:
    """Return the innermost frame of a task; None where it has none that Python can see."""
    inner: Any = task.get_coro()
    found: FrameType | None = None
    for _ in range(DEEPEST):
        if hasattr(inner, "cr_frame"):
            frame, awaited = inner.cr_frame, inner.cr_await
        elif hasattr(inner, "gi_frame"):
            frame, awaited = inner.gi_frame, inner.gi_yieldfrom
        elif hasattr(inner, "ag_frame"):
            frame, awaited = inner.ag_frame, inner.ag_await
        else:
            break
        if frame is None:
            break
        found, inner = frame, awaited
    return found


def frame_of_thread(ident: int) -> FrameType | None:
    """Return the innermost frame of a thread; None where it has ended."""
    return sys._current_frames().get(ident)  # noqa: SLF001 (documented, for debuggers)


def place(frame: FrameType | None) -> str:
    """Return a frame for people: `file:line in function`."""
    if frame is None:
        return "no frame"
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
