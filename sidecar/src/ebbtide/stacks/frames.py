"""Where work is: its stack, read off from any thread without stopping it, at about a microsecond for a frame."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from types import CodeType, CoroutineType, FrameType
from typing import Any, NamedTuple


def _folder(file: str) -> str:
    # Without pathlib, which is half of what this module costs its importer.
    return file.rpartition("/")[0] + "/"


DEEPEST = 200
"""Frames that are walked at most."""
ASYNCIO = _folder(asyncio.__file__)
STANDARD = _folder(threading.__file__)
PACKAGES = ("/site-packages/", "/dist-packages/")
OWN = _folder(_folder(__file__)[:-1])
COUNTED = OWN + "tasks/counted.py"
MOST_TYPES = 100

_without_frames: set[type] = set()
"""Types of what was awaited and has no frame, most of all futures: to ask one for each attribute in vain takes long."""


class Step(NamedTuple):
    """One frame of a stack."""

    code: CodeType
    line: int

    def __str__(self) -> str:
        return f"{self.code.co_filename}:{self.line} in {self.code.co_qualname}"


Stack = tuple[Step, ...]
"""The outermost frame comes first."""
Key = tuple[Any, ...]
"""The key of the frames around the innermost one, that one's code, and the place in it."""


def all_threads() -> dict[int, FrameType]:
    """Return the innermost frame of each thread; of this one the line that called into the library, if any did.

    Not the very innermost: a function of ours that held its own frame would keep all its variables, a crowd of ended
    tasks for one, until the garbage collector comes.
    """
    frames = sys._current_frames()  # noqa: SLF001 (documented, for debuggers)
    mine = _outside(frames.pop(threading.get_ident()))
    if mine is not None:
        frames[threading.get_ident()] = mine
    return frames


def caller() -> Step | None:
    """Return the line that called into the library; None where nobody did."""
    frame = _outside(sys._getframe(1))  # noqa: SLF001 (documented)
    return None if frame is None else Step(frame.f_code, frame.f_lineno or 0)


def _outside(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame that is none of the library's, from one of its own outwards."""
    while frame is not None and frame.f_code.co_filename.startswith(OWN):
        frame = frame.f_back
    return frame


def unbegun(coroutine: Any) -> Any:
    """Return what a coroutine of ours was given to run, where it has not begun; None: it has, or is none of ours."""
    # Asked first: Python makes the frame that `given_to` looks at for who asks, and each cancel asks.
    if getattr(coroutine, "cr_suspended", True) or coroutine.cr_running:
        return None
    return given_to(coroutine)


def given_to(coroutine: Any) -> Any:
    """Return what a coroutine of ours was given to run; None where it is none of ours, or has ended.

    Python only tells what a coroutine awaits while that is suspended.
    """
    code, frame = getattr(coroutine, "cr_code", None), getattr(coroutine, "cr_frame", None)
    if code is None or frame is None or not code.co_filename.startswith(OWN):
        return None
    return frame.f_locals.get("coroutine")


def frames_of_task(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of a task, the outermost first; none where Python can see none."""
    frames: list[FrameType] = []
    inner: Any = task.get_coro()
    for _ in range(DEEPEST):
        if type(inner) in _without_frames:
            break
        if type(inner) is CoroutineType or hasattr(inner, "cr_frame"):
            frame, awaited = inner.cr_frame, inner.cr_await
        elif hasattr(inner, "gi_frame"):
            frame, awaited = inner.gi_frame, inner.gi_yieldfrom
        elif hasattr(inner, "ag_frame"):
            frame, awaited = inner.ag_frame, inner.ag_await
        else:
            if inner is not None and len(_without_frames) < MOST_TYPES:
                _without_frames.add(type(inner))
            break
        if frame is None:
            break
        frames.append(frame)
        inner = given_to(inner) if awaited is None else awaited
    return frames


def frames_of_thread(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of a thread, the outermost first, from its innermost; None: it has ended."""
    frames: list[FrameType] = []
    while frame is not None and len(frames) < DEEPEST:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def stack_of(frames: Sequence[FrameType]) -> Stack:
    """Return what is kept of frames that go on."""
    # The frame that counts a task says nothing about it.
    told = [frame for frame in frames if frame.f_code.co_filename != COUNTED]
    return tuple([Step(frame.f_code, frame.f_lineno or 0) for frame in told])


def key_of(frames: Sequence[FrameType]) -> Key:
    """Return what tells a stack from others while both live; two of one line may have two keys.

    The place in the code instead of a line, which is looked up.
    """
    key: Key = ()
    for frame in frames:
        key = key, id(frame.f_code), frame.f_lasti
    return key


def key_of_task(task: asyncio.Task[Any]) -> Key | None:
    """Return `key_of(frames_of_task(task))` for the usual task, in a fraction of the time; None: for any other.

    Usual are coroutines that await each other, and at the end a future.
    """
    key: Key = ()
    inner: Any = task.get_coro()
    for _ in range(DEEPEST):
        if type(inner) is not CoroutineType:
            return key if type(inner) in _without_frames else None
        frame = inner.cr_frame
        if frame is None:
            return None
        key = key, id(frame.f_code), frame.f_lasti
        inner = inner.cr_await
    return None


def place_of(stack: Stack) -> str:
    """Return the innermost line that is the application's or a package's; where there is none, the innermost one."""
    for step in reversed(stack):
        if not _is_standard(step.code.co_filename):
            return str(step)
    return str(stack[-1]) if stack else "no frame"


def is_applications(code: CodeType) -> bool:
    """Say whether code is the application's: no package's, not of the standard library, and not ours."""
    file = code.co_filename
    return not any(folder in file for folder in PACKAGES) and not _is_standard(file)


def _is_standard(file: str) -> bool:
    """Say whether a file is of the standard library, or ours."""
    if any(folder in file for folder in PACKAGES):
        return file.startswith(OWN)
    return file.startswith((STANDARD, OWN, "<frozen"))
