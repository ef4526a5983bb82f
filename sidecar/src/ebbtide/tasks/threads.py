"""Work in threads of its own: counted like tasks, and never what keeps a process from its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar

from ebbtide.tasks.cancelling import call_in
from ebbtide.tasks.entries import Entry, current_entry, log_crash

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope

T = TypeVar("T")


def in_thread(scope: Scope, number: int, function: Callable[[], T]) -> Future[T]:
    """Run a function in a thread, as the admitted entry of that number."""
    registry = scope.registry
    entry = Entry(number, "thread", f"{scope.name}-{number}", scope, None)
    registry.live[number] = entry
    context = copy_context()
    context.run(current_entry.set, number)
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    work = partial(_run, entry, future, function)
    try:
        # A daemon: the interpreter waits for others at its end.
        threading.Thread(target=context.run, args=(work,), name=entry.name, daemon=True).start()
    except RuntimeError:
        registry.withdraw(number)
        scope.gate.leave(number, "cancelled")
        raise
    return future


def _run(entry: Entry, future: Future[T], function: Callable[[], T]) -> None:
    scope = entry.scope
    entry.thread = get_ident()
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 (it is the future's to raise)
        log_crash(entry, error)
        scope.end(entry, "failed")
        future.set_exception(error)
        scope.crashed(entry, error)
    else:
        scope.end(entry, "finished")
        future.set_result(result)


async def in_daemon_thread(function: Callable[[], object]) -> None:
    """Run a function off the loop; not in asyncio's executor, all of whose threads may hang in the application's work.

    An exception of the function goes to `threading.excepthook`.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            function()
        finally:
            call_in(loop, done.set)

    threading.Thread(target=run, name="ebbtide-goodbye", daemon=True).start()
    await done.wait()
