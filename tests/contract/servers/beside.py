"""The runtime in a thread of its own, for processes that run no event loop: WSGI servers, Celery."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import ebbtide
from tests.contract.servers.service import a_runtime


class Beside:
    """A runtime beside the work.

    Args:
        on_drain: Called when a drain begins, whoever asked for it.
    """

    def __init__(self, on_drain: Callable[[], object] = lambda: None) -> None:
        self._on_drain = on_drain
        self._runtime: ebbtide.Runtime | None = None
        self._started = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def runtime(self) -> ebbtide.Runtime:
        assert self._runtime is not None
        return self._runtime

    def start(self) -> None:
        """Start the runtime, after a fork and not before it."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="ebbtide-loop", daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def drain(self, reason: str) -> None:
        """Tell the runtime that the server was told to end; from a signal handler, too."""
        self.runtime.drain(reason)

    def wait(self) -> None:
        """Wait until the runtime has ended, after the work has."""
        if self._thread is not None:
            self._thread.join(10)

    async def _live(self) -> None:
        async with a_runtime() as self._runtime:
            self._runtime.on_drain(self._on_drain)
            self._started.set()
            await self._runtime.wait_exit()
