"""Child processes as work in flight: each has a task that waits for its end, and brings it about when cancelled."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

from ebbtide.errors import TimedOut
from ebbtide.tasks.cancelling import cancel_here
from ebbtide.tasks.entries import Entry, Live, error_of, log_crash, outcome_of
from ebbtide.tasks.limits import tighter
from ebbtide.tasks.starting import start_entry

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope

logger = logging.getLogger("ebbtide")

KILL_LEAD_S = 0.5
"""How long before the end of its grace a child is killed, so that it is gone when nobody waits for it any more."""
KILL_LEAD_SHARE = 0.25
"""At most so much of the grace."""
LIMIT_BYTES = 2**16
"""asyncio's own limit for the buffer of a pipe's stream."""

Command = Sequence[str | os.PathLike[str]]


class Child(Entry):
    """One child process in flight.

    Attributes:
        process: None: not started yet.
        leads: It leads a process group of its own, all of which is signalled.
        exited: Set when it has been reaped: `Process.wait` also waits for its pipes, which others may hold.
    """

    __slots__ = ("exited", "leads", "process")

    def __init__(self, number: int, name: str, scope: Scope, meta: Mapping[str, Any] | None, *, leads: bool) -> None:
        super().__init__(number, "process", name, scope, meta)
        self.process: Process | None = None
        self.leads = leads
        self.exited = asyncio.Event()

    def send(self, number: int) -> None:
        """Send it a signal, from any thread; one that has ended gets none."""
        process = self.process
        if process is None or process.returncode is not None or not _is_unreaped(process.pid):
            return
        try:
            # Not by `Process.send_signal`: until Python 3.13 that may reap the child, whose status is then lost.
            (os.killpg if self.leads else os.kill)(process.pid, number)
        except OSError as error:
            logger.warning("ebbtide: process %s of %s: signal %d: %s", self.name, self.scope.name, number, error)


class _Protocol(SubprocessStreamProtocol):
    """asyncio's own, which also says when the process was reaped."""

    def __init__(self, exited: asyncio.Event, limit: int) -> None:
        super().__init__(limit=limit, loop=asyncio.get_running_loop())
        self._exited = exited

    def process_exited(self) -> None:
        super().process_exited()
        self._exited.set()


async def start_process(
    scope: Scope,
    command: Command,
    name: str | None,
    meta: Mapping[str, Any] | None,
    timeout_s: float | None,
    options: Mapping[str, Any],
) -> Process:
    """Start a child process as an entry; see `Scope.process`."""
    loop = asyncio.get_running_loop()
    started: asyncio.Future[Process] = loop.create_future()
    number = scope.enter()
    leads = bool(options.get("start_new_session")) or options.get("process_group") == 0
    child = Child(number, name or f"{Path(command[0]).name}-{number}", scope, meta, leads=leads)
    limit_s = tighter(timeout_s, scope.timeout_s)
    context = copy_context()
    make = partial(context.run, loop.create_task, name=child.name)
    tending = _tend(child, started, command, dict(options))
    child.task = start_entry(child, tending, limit_s, context, make, partial(_ended, child, started))
    try:
        return await started
    except asyncio.CancelledError:
        # Nobody would have a handle of it.
        cancel_here(scope.registry, [child], "whoever started it was cancelled")
        raise


def kill(items: Iterable[Live]) -> None:
    """Kill the child processes among entries, from any thread: a loop that is blocked ends none of them."""
    for item in items:
        if isinstance(item, Child):
            item.send(signal.SIGKILL)


async def _tend(child: Child, started: asyncio.Future[Process], command: Command, options: dict[str, Any]) -> int:
    """Start a process, wait for its end, and return its status; when cancelled, end it."""
    loop = asyncio.get_running_loop()
    limit = options.pop("limit", LIMIT_BYTES)
    streams = {name: options.pop(name, None) for name in ("stdin", "stdout", "stderr")}
    # asyncio ends what it has started where this is cancelled.
    transport, protocol = await loop.subprocess_exec(
        partial(_Protocol, child.exited, limit), command[0], *command[1:], **streams, **options
    )
    process = child.process = Process(transport, protocol, loop)
    child.meta = {**(child.meta or {}), "pid": process.pid}
    if not started.done():
        started.set_result(process)
    try:
        await child.exited.wait()
    except asyncio.CancelledError:
        await _end(child)
        raise
    return process.returncode or 0


async def _end(child: Child) -> None:
    """Ask a process to end, kill it where it does not, and wait until it is gone."""
    grace_s = child.scope.registry.grace_s if child.grace_s is None else child.grace_s
    patience_s = max(0.0, grace_s - min(KILL_LEAD_S, grace_s * KILL_LEAD_SHARE))
    child.send(signal.SIGTERM)
    killing = asyncio.get_running_loop().call_later(patience_s, _kill, child, f"SIGTERM {patience_s:.3g} s ago")
    try:
        await child.exited.wait()
    except asyncio.CancelledError:
        _kill(child, "SIGTERM, and is to end at once")
        await child.exited.wait()
        raise
    finally:
        killing.cancel()


def _kill(child: Child, got: str) -> None:
    if not child.exited.is_set():
        logger.warning("ebbtide: process %s of %s is killed: it got %s", child.name, child.scope.name, got)
        child.send(signal.SIGKILL)


def _ended(child: Child, started: asyncio.Future[Process], task: asyncio.Task[int]) -> None:
    scope = child.scope
    error = error_of(task)
    if not started.done():
        # Whoever waits for the start is told what came of it.
        if error is None or isinstance(error, asyncio.CancelledError):
            started.cancel()
        else:
            started.set_exception(error)
    if isinstance(error, asyncio.CancelledError | TimedOut):
        scope.end(child, outcome_of(error, child))
    elif error is None and (status := task.result()):
        logger.error(
            "ebbtide: process %s of %s ended with status %d: %r", child.name, scope.name, status, child.meta or {}
        )
        scope.end(child, "failed")
        scope.crashed(child, CalledProcessError(status, child.name))
    elif error is None:
        scope.end(child, "finished")
    else:
        if child.process is not None:
            log_crash(child, error)
        scope.end(child, "failed")
    child.task = None


def _is_unreaped(pid: int) -> bool:
    """Say whether a process is a child of this one whose number nobody else can have yet."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
