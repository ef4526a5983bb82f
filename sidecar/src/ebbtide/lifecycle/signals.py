"""SIGTERM and SIGINT, in company: servers have handlers of their own, and both must run.

A handler that is installed with `loop.add_signal_handler` silently replaces those of uvicorn, aiohttp and gunicorn,
which then never exit. A plain `signal.signal` handler that calls the earlier one lives with all of them: asyncio's and
uvloop's own handlers are driven by the wake-up descriptor, which CPython writes to whatever the Python-level handler
is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

logger = logging.getLogger("ebbtide")

CHAINED = (signal.SIGTERM, signal.SIGINT)
HURRIED = 2
"""This one shortens the drain and goes no further; later ones mean to Python and to the server what they always did."""


class Signals:
    """Tell of SIGTERM and SIGINT, and pass them on: all but the second, which is for the drain alone.

    Args:
        on_signal: Called in the main thread, between two bytecodes, with the signal's name and how many came so far. It
            must not raise and must not wait.
        on_dump: Called likewise for SIGUSR1, where nobody else has a use for that.
    """

    def __init__(self, on_signal: Callable[[str, int], None], on_dump: Callable[[], None] = lambda: None) -> None:
        self._on_signal = on_signal
        self._on_dump = on_dump
        self._dumps = False
        self._alarm: tuple[asyncio.AbstractEventLoop, socket.socket, socket.socket] | None = None
        self._earlier: dict[int, Any] = {}
        self._count = 0
        self._process = os.getpid()

    def install(self) -> bool:
        """Put our handlers before those that are there; False outside the main thread, where Python allows none."""
        if threading.current_thread() is not threading.main_thread():
            logger.warning("ebbtide: not started in the main thread, so SIGTERM does not start a drain here")
            return False
        self._process = os.getpid()
        for number in CHAINED:
            earlier = signal.getsignal(number)
            name = signal.Signals(number).name
            if earlier is None:
                logger.warning("ebbtide: %s has a handler that is not Python's, so it does not start a drain", name)
                continue
            if number == signal.SIGINT and earlier is signal.SIG_IGN:
                continue  # started in the background by a shell: Ctrl-C is meant for others
            self._earlier[number] = earlier
            signal.signal(number, self._handle)
        # Servers reopen their logs on SIGUSR1: theirs is not touched.
        if signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, self._dump)
            self._dumps = True
        self._wake_the_loop()
        return True

    def uninstall(self) -> None:
        """Put the earlier handlers back, where nobody put another one on top of ours meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, earlier in self._earlier.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, earlier)
        self._earlier.clear()
        self._let_the_loop_sleep()
        if self._dumps and signal.getsignal(signal.SIGUSR1) == self._dump:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self._dumps = False

    def forget(self) -> None:
        """Put the earlier handlers back in a forked child, and leave the loop alone, which is the parent's."""
        for number, earlier in self._earlier.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, earlier)
        self._earlier.clear()
        if self._dumps and signal.getsignal(signal.SIGUSR1) == self._dump:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self._dumps = False
        if self._alarm is not None:
            _, receiver, sender = self._alarm
            self._alarm = None
            current = signal.set_wakeup_fd(-1)
            if current not in {-1, sender.fileno()}:
                signal.set_wakeup_fd(current)
            receiver.close()
            sender.close()

    @property
    def displaced(self) -> tuple[str, ...]:
        """Names of signals whose handlers somebody replaced after us: they do not reach us any more."""
        return tuple(
            signal.Signals(number).name for number in list(self._earlier) if signal.getsignal(number) != self._handle
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        earlier = self._earlier.get(number)
        if os.getpid() != self._process:
            self._act_as_before(number, frame, earlier)
            return
        self._count += 1
        self._on_signal(signal.Signals(number).name, self._count)
        if number == signal.SIGINT and _is_pythons_own(earlier):
            # Called now, it would tear the application down in the middle of its drain.
            if self._count >= HURRIED:
                del self._earlier[number]
                signal.signal(number, earlier)
            if self._count > HURRIED:
                self._act_as_before(number, frame, earlier)
            return
        if self._count == HURRIED:
            # Most servers take a second signal for the order to drop everything: tasks that were cancelled just now
            # would not get to clean up (docs/decisions/0010).
            return
        if callable(earlier):
            earlier(number, frame)
        elif earlier == signal.SIG_DFL and self._count > HURRIED and signal.getsignal(number) == self._handle:
            # Nobody has a handler, below ours or on top of it: the default action, which the drain had put off.
            del self._earlier[number]
            self._act_as_before(number, frame, earlier)

    def _wake_the_loop(self) -> None:
        """See to it that a signal wakes the loop that runs here.

        A signal that comes between Python's last look and the loop's wait is handled when that wait ends: without
        this, in an idle service, that may be never.
        """
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        earlier = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        if earlier != -1:
            # Somebody's signals wake this loop already: uvloop's own, or `loop.add_signal_handler`.
            signal.set_wakeup_fd(earlier)
        else:
            try:
                loop = asyncio.get_running_loop()
                loop.add_reader(receiver, _read, receiver)
            except (RuntimeError, NotImplementedError):  # no loop, or one that watches no sockets
                signal.set_wakeup_fd(-1)
            else:
                self._alarm = loop, receiver, sender
                return
        receiver.close()
        sender.close()

    def _let_the_loop_sleep(self) -> None:
        if self._alarm is None:
            return
        loop, receiver, sender = self._alarm
        self._alarm = None
        current = signal.set_wakeup_fd(-1)
        if current not in {-1, sender.fileno()}:
            signal.set_wakeup_fd(current)
        if not loop.is_closed():
            loop.remove_reader(receiver)
        receiver.close()
        sender.close()

    def _dump(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self._on_dump()
        else:
            self._act_as_before(number, frame, signal.SIG_DFL)

    def _act_as_before(self, number: int, frame: FrameType | None, earlier: Any) -> None:
        """Be what was there before: for the third signal, and in a forked child, which has no drain to end it."""
        if callable(earlier):
            earlier(number, frame)
        elif earlier is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _read(receiver: socket.socket) -> None:
    with contextlib.suppress(OSError):
        receiver.recv(4096)


def _is_pythons_own(handler: Any) -> bool:
    """Say whether it is what Python or `asyncio.run` installs for SIGINT, and not the application's choice."""
    function = getattr(handler, "func", handler)
    return handler is signal.default_int_handler or isinstance(getattr(function, "__self__", None), asyncio.Runner)
