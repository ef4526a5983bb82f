"""Who lets an order in, and when the process may end: the two ways that need nothing but Python.

`managed.py` is the third.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self

from .marks import MarkKind

Work = Coroutine[Any, Any, None]
Note = Callable[[MarkKind], None]
"""Tells the ledger what happens to this pod."""


class IntakeClosed(Exception):
    """The pod takes no more orders; another one will."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"intake is closed, ask again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class Intake(Protocol):
    """An async context manager around the life of the service."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def ready(self) -> bool:
        """True while the pod wants new connections."""

    def admit(self, work: Work, name: str) -> asyncio.Task[None]:
        """Start work on an order.

        Raises:
            IntakeClosed: The pod is on its way out; `work` was not started.
        """

    async def wait_exit(self) -> None:
        """Return when the process is to end."""


class PlainIntake:
    """Take every order and know nothing of an end: what a service does before anybody thought about it.

    SIGTERM keeps its default action.
    """

    ready = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def admit(self, work: Work, name: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, name=name)

    async def wait_exit(self) -> None:
        await asyncio.get_running_loop().create_future()


class GracefulIntake:
    """Stop intake on SIGTERM, finish what was taken, then end: the best that a pod can do by itself.

    Args:
        note: Told when the signal arrives.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._terminating = asyncio.Event()
        self._working: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.terminate)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    @property
    def ready(self) -> bool:
        return not self._terminating.is_set()

    def terminate(self) -> None:
        """Stop intake; a second call changes nothing."""
        if self.ready:
            self._note(MarkKind.TOLD)
            self._note(MarkKind.CLOSED)
            self._terminating.set()

    def admit(self, work: Work, name: str) -> asyncio.Task[None]:
        if not self.ready:
            work.close()
            raise IntakeClosed(retry_after_s=1.0)
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    async def wait_exit(self) -> None:
        await self._terminating.wait()
        if self._working:
            await asyncio.wait(self._working)
