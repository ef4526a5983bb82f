"""What work waits for, read off its frames: from any thread, without stopping it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from ebbtide.stacks.frames import ASYNCIO, STANDARD, Stack

RUNNING, READY = "running", "ready"
QUEUE, LOCK, EVENT, SLEEP, IO, SELECT = "queue", "lock", "event", "sleep", "I/O", "select"
THREAD, SUBPROCESS, TASK, FUTURE = "thread", "subprocess", "task", "future"
STATES = (RUNNING, READY, QUEUE, LOCK, EVENT, SLEEP, IO, SELECT, THREAD, SUBPROCESS, TASK, FUTURE)
"""`ready`: its turn comes; `select`: waits for several things; `task`: for one; `future`: for what cannot be told."""

_BY_FILE = {
    "queues.py": QUEUE,
    "locks.py": LOCK,
    "taskgroups.py": SELECT,
    "threads.py": THREAD,
    "subprocess.py": SUBPROCESS,
    "base_subprocess.py": SUBPROCESS,
    "streams.py": IO,
    "selector_events.py": IO,
    "unix_events.py": IO,
    "base_events.py": IO,
    "sslproto.py": IO,
}
_BY_NAME = {
    ("tasks.py", "sleep"): SLEEP,
    ("tasks.py", "wait"): SELECT,
    ("tasks.py", "_wait"): SELECT,
    ("tasks.py", "wait_for"): SELECT,
    ("locks.py", "Event.wait"): EVENT,
}
_THREADS_BY_FILE = {
    "queue.py": QUEUE,
    "selectors.py": SELECT,
    "socket.py": IO,
    "ssl.py": IO,
    "subprocess.py": SUBPROCESS,
}
_THREADS_BY_NAME = {
    ("threading.py", "Event.wait"): EVENT,
    ("threading.py", "Condition.wait"): LOCK,
    ("threading.py", "Semaphore.acquire"): LOCK,
    ("threading.py", "Barrier.wait"): LOCK,
    ("threading.py", "Thread._wait_for_tstate_lock"): THREAD,
    ("threading.py", "Thread.join"): THREAD,
}


def state_of_task(task: asyncio.Task[Any], by_stack: str) -> str:
    """Return what a task waits for, one of `STATES`; `by_stack`: what `state_of_stack` said."""
    waiter = getattr(task, "_fut_waiter", None)
    if waiter is None:
        return RUNNING if getattr(task.get_coro(), "cr_running", False) else READY
    if by_stack != FUTURE:
        return by_stack
    if isinstance(waiter, asyncio.Task):
        return TASK
    if any("_chain_future" in getattr(callback[0], "__qualname__", "") for callback in callbacks_of(waiter)):
        return THREAD
    return SELECT if type(waiter).__name__ == "_GatheringFuture" else FUTURE


def state_of_stack(stack: Stack) -> str:
    """Return what a task waits for, by its frames; `future` where they do not tell."""
    # Of asyncio's frames at the inner end the outermost is what the application called: `Queue.join` waits on an event.
    found = FUTURE
    for step in reversed(stack):
        folder, _, name = step.code.co_filename.rpartition("/")
        if folder + "/" != ASYNCIO:
            break
        called = _BY_NAME.get((name, step.code.co_qualname)) or _BY_FILE.get(name)
        # A wait with a time limit is one for what it limits, where that can be seen.
        if called and not (step.code.co_qualname == "wait_for" and found != FUTURE):
            found = called
    return found


def state_of_thread(stack: Stack) -> str:
    """Return what a thread waits for, by its frames."""
    if not stack:
        return READY
    found = RUNNING
    for step in reversed(stack):
        folder, _, name = step.code.co_filename.rpartition("/")
        if folder + "/" != STANDARD:
            break
        called = _THREADS_BY_NAME.get((name, step.code.co_qualname)) or _THREADS_BY_FILE.get(name)
        found = called or found
    return found


def callbacks_of(future: asyncio.Future[Any]) -> Sequence[tuple[Any, Context | None]]:
    """Return who is told of the end of a future, each with the context to be called in."""
    return getattr(future, "_callbacks", None) or ()
