"""What every server serves: requests that take `?seconds=`, and notes of what became of them.

The notes go to the file `$NOTES`, a line for each, because what is interesting happens after the last answer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import ebbtide

CLEANUP_S = 0.3


def note(text: str) -> None:
    """Append a line; one write, so that lines of several processes do not mix."""
    descriptor = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def a_runtime() -> ebbtide.Runtime:
    """Return a runtime that opens and closes a pool, and notes how it drained; with `$BROKEN` its start fails."""
    runtime = ebbtide.Runtime()
    runtime.on_start(pool, ebbtide.Stage.POOLS)
    runtime.on_start(check, ebbtide.Stage.CHECKS)
    runtime.on_exit(lambda: _note_end(runtime))
    return runtime


async def pool() -> AsyncIterator[None]:
    note("pool opened")
    yield
    await asyncio.sleep(0.05)
    note("pool closed")


def check() -> None:
    if "BROKEN" in os.environ:
        raise ConnectionError("the database does not answer")


def _note_end(runtime: ebbtide.Runtime) -> None:
    report = runtime.drain_report()
    note("no drain" if report is None else f"drained {report.outcome} by {report.reason}")


async def handle(scope: ebbtide.Scope, name: str, seconds: float) -> None:
    """Serve one request, as work that a drain waits for; cancelled, it cleans up.

    Raises:
        ebbtide.Refused: The process drains.
    """
    with scope.track(name):
        note(f"{name} began")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            note(f"{name} was cancelled")
            await asyncio.sleep(CLEANUP_S)
            note(f"{name} cleaned up")
            raise
        note(f"{name} finished")


def handle_in_thread(scope: ebbtide.Scope, name: str, seconds: float, runtime: ebbtide.Runtime) -> bool:
    """Serve one request in a thread, which nobody can cancel: it looks by itself whether its time is up.

    Returns:
        Whether it came to its end.

    Raises:
        ebbtide.Refused: The process drains.
    """
    with scope.track(name):
        note(f"{name} began")
        end_at = time.monotonic() + seconds
        while time.monotonic() < end_at:
            time.sleep(0.02)
            if runtime.state is ebbtide.PodState.CANCELLING:
                note(f"{name} was cancelled")
                time.sleep(CLEANUP_S)
                note(f"{name} cleaned up")
                return False
        note(f"{name} finished")
        return True
