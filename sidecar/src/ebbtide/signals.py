"""SIGTERM and SIGINT, in company: servers have handlers of their own, and both must run.

A handler that is installed with `loop.add_signal_handler` silently replaces those of uvicorn, aiohttp and gunicorn,
which then never exit. A plain `signal.signal` handler that calls the earlier one lives with all of them: asyncio's and
uvloop's own handlers are driven by the wake-up descriptor, which CPython writes to whatever the Python-level handler
is.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

logger = logging.getLogger("ebbtide")

CHAINED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Tell of SIGTERM and SIGINT, and pass them on.

    Args:
        on_signal: Called in the main thread, between two bytecodes, with the signal's name and how many came so far. It
            must not raise and must not wait.
    """

    def __init__(self, on_signal: Callable[[str, int], None]) -> None:
        self._on_signal = on_signal
        self._earlier: dict[int, Any] = {}
        self._count = 0

    def install(self) -> bool:
        """Put our handlers before those that are there; False outside the main thread, where Python allows none.

        SIGINT keeps its default (KeyboardInterrupt) where nobody handles it: Ctrl-C is for people in a hurry.
        """
        if threading.current_thread() is not threading.main_thread():
            logger.warning("ebbtide: not started in the main thread, so SIGTERM does not start a drain here")
            return False
        for number in CHAINED:
            earlier = signal.getsignal(number)
            if number == signal.SIGINT and earlier in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN):
                continue
            self._earlier[number] = earlier
            signal.signal(number, self._handle)
        return True

    def uninstall(self) -> None:
        """Put the earlier handlers back, where nobody put another one on top of ours meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, earlier in self._earlier.items():
            # A handler set from C reads as None and cannot be put back.
            if signal.getsignal(number) == self._handle and earlier is not None:
                signal.signal(number, earlier)
        self._earlier.clear()

    @property
    def displaced(self) -> tuple[str, ...]:
        """Names of signals whose handlers somebody replaced after us: they do not reach us any more."""
        return tuple(
            signal.Signals(number).name for number in self._earlier if signal.getsignal(number) != self._handle
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self._on_signal(signal.Signals(number).name, self._count)
        earlier = self._earlier.get(number)
        # The default action of SIGTERM would end the process at once: the drain does that, later.
        if callable(earlier) and earlier is not signal.default_int_handler:
            earlier(number, frame)
