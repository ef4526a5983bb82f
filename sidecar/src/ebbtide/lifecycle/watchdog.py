"""The last resort: a process that was told to end and does not is ended.

The time stands from the start of the drain on, in a thread of its own, so that nothing of ours that hangs (a log
handler that blocks, for one) keeps it from coming. Code that never lets go of the interpreter stops all Python threads;
for that case a thread of the C library, faulthandler's, comes a moment later.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from time import monotonic

from ebbtide.stacks.frames import all_threads, frames_of_thread, place_of, stack_of

logger = logging.getLogger("ebbtide")

LEAD_S = 1.0
"""Seconds before the kubelet's SIGKILL: logs that are flushed are worth more than a second of waiting."""
FLUSH_S = 0.4
BACKSTOP_S = 0.6
"""How much later faulthandler's thread comes."""
AT_ONCE_S = 0.001
"""faulthandler wants more than nothing."""
STDERR = 2


class _Backstop:
    """faulthandler's timer: there is one in a process, and it must not stand while the process forks.

    A child would inherit the timer and not its thread, and wait for that thread without end, holding the interpreter,
    as soon as it set a timer of its own or just exited. Only before the fork can that be prevented.
    """

    def __init__(self) -> None:
        # Re-entrant, as that of `logging`: a signal handler that forks may interrupt a fork.
        self._lock = threading.RLock()
        self._fires_at: float | None = None

    def expect_end_by(self, at: float | None) -> None:
        """End the process `BACKSTOP_S` after a time in monotonic seconds; None: not any more."""
        with self._lock:
            self._fires_at = None if at is None else max(at, monotonic()) + BACKSTOP_S
            if self._fires_at is None:
                faulthandler.cancel_dump_traceback_later()
            else:
                self._arm(self._fires_at)

    def before_fork(self) -> None:
        """Take the timer down, and let nobody set it until the process has forked."""
        self._lock.acquire()
        if self._fires_at is not None:
            faulthandler.cancel_dump_traceback_later()

    def after_fork_in_parent(self) -> None:
        """Set the timer again for the time that it had."""
        try:
            if self._fires_at is not None:
                self._arm(self._fires_at)
        finally:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Be one that was never set: nobody told this process to end."""
        self._lock = threading.RLock()
        self._fires_at = None

    @staticmethod
    def _arm(fires_at: float) -> None:
        faulthandler.dump_traceback_later(max(AT_ONCE_S, fires_at - monotonic()), exit=True, file=STDERR)


_backstop = _Backstop()
os.register_at_fork(
    before=_backstop.before_fork,
    after_in_parent=_backstop.after_fork_in_parent,
    after_in_child=_backstop.after_fork_in_child,
)


class Watchdog:
    """End the process by force at a time that may still change."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._end_at: float | None = None
        self._thread: threading.Thread | None = None

    def expect_end_by(self, at: float | None) -> None:
        """End the process at a time in monotonic seconds, unless it ended until then; None: not any more."""
        with self._changed:
            if at == self._end_at:
                return
            self._end_at = at
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ebbtide-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        _backstop.expect_end_by(at)

    def _run(self) -> None:
        with self._changed:
            while self._end_at is None or self._end_at > monotonic():
                self._changed.wait(None if self._end_at is None else self._end_at - monotonic())
        _end()


def _end() -> None:
    # In a thread: a handler's lock may be held by the very thread that hangs.
    last_words = threading.Thread(target=_flush, daemon=True)
    last_words.start()
    last_words.join(FLUSH_S)
    os._exit(1)


def _flush() -> None:
    main = threading.main_thread().ident or 0
    place = place_of(stack_of(frames_of_thread(all_threads().get(main))))
    logger.critical("ebbtide: still here after the drain's budget; ending the process; its main thread is at %s", place)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
