"""Connections that would go on for ever: they are asked to end when intake closes, before anybody is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Protocol

from ebbtide.asgi.answers import SERVICE_RESTART, Message, Receive, Send, closing

AT_ONCE = 250
"""Connections that are ended in one turn of the loop."""


class OnDrain(StrEnum):
    """What a drain means to a connection."""

    FINISH = "finish"
    """Nothing: it is waited for like any other work, until the drain timeout."""
    END = "end"
    """It is asked to end when intake closes: a websocket by a close with 1012, a response by `http.disconnect`."""


class ClosedForRestart(ConnectionResetError):
    """Sent to a websocket that was closed because the process drains."""


class Ending(Protocol):
    """A connection that can be asked to end."""

    def end(self) -> None: ...


class Endings:
    """Ask the connections that are open to end, when the time has come."""

    def __init__(self) -> None:
        self._open: dict[Ending, None] = {}
        self._process = os.getpid()

    def add(self, connection: Ending, *, late: bool) -> None:
        """Take one in; `late`: the time has come already."""
        self._forget_those_of_the_parent()
        self._open[connection] = None
        if late:
            connection.end()

    def remove(self, connection: Ending) -> None:
        self._open.pop(connection, None)

    def end_all(self) -> None:
        """Ask all of them, some at a time; in the loop."""
        self._forget_those_of_the_parent()
        self._end(list(self._open))

    def _forget_those_of_the_parent(self) -> None:
        # A forked child has its parent's sockets, and must not speak on them.
        if self._process != os.getpid():
            self._process = os.getpid()
            self._open = {}

    def _end(self, connections: list[Ending]) -> None:
        for connection in connections[:AT_ONCE]:
            if connection in self._open:
                connection.end()
        if len(connections) > AT_ONCE:
            asyncio.get_running_loop().call_soon(self._end, connections[AT_ONCE:])


class Response:
    """A response whose client seems to be gone, to the application, once it is asked to end.

    The application hears of it where it listens, by `receive`, and not before it has read the body of the request.
    """

    def __init__(self, receive: Receive, send: Send, closes: Callable[[], bool]) -> None:
        self.started = False
        self._receive = receive
        self._send = send
        self._closes = closes
        self._body_read = False
        self._complete = False
        self._has_length = False
        self._asked = asyncio.Event()
        self._coming: asyncio.Future[Message] | None = None

    def end(self) -> None:
        self._asked.set()

    async def receive(self) -> Message:
        if not self._body_read:
            message = await self._receive()
            self._body_read = not message.get("more_body")
            return message
        if not self._asked.is_set():
            # Kept where this call is cancelled: what it then brings is for the next one.
            self._coming = self._coming or asyncio.ensure_future(self._receive())
            asked = asyncio.ensure_future(self._asked.wait())
            either: tuple[asyncio.Future[Any], ...] = (self._coming, asked)
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                asked.cancel()
            if self._coming.done():
                coming, self._coming = self._coming, None
                return coming.result()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._has_length = any(bytes(name).lower() == b"content-length" for name, _ in message.get("headers", ()))
            if self._closes():
                message = closing(message)
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body")
        await self._send(message)

    async def finish(self) -> None:
        """End a response that the application broke off because it was asked to: its client sees an orderly end."""
        self.let_go()
        # One of a given length cannot be ended early: the server breaks the connection off.
        if self._asked.is_set() and self.started and not self._complete and not self._has_length:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def let_go(self) -> None:
        """Stop listening on the application's behalf."""
        if self._coming is not None:
            self._coming.cancel()


class Websocket:
    """A websocket that is closed with 1012, *service restart*, once it is asked to end."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.accepted = False
        self.closed = False
        """A close was sent, by whomever."""
        self._for_restart = False
        self._receive = receive
        self._send = send
        self._asked = False
        self._closing: asyncio.Task[None] | None = None

    def end(self) -> None:
        self._asked = True
        if self.accepted:
            # Not by the application's task, which may wait for something else.
            self._closing = asyncio.get_running_loop().create_task(self.close(), name="ebbtide-websocket-close")

    async def close(self) -> None:
        """Tell the client to connect to another process; once, and only where it is connected."""
        if self.accepted and not self.closed:
            self.closed = self._for_restart = True
            with contextlib.suppress(OSError):  # it is gone by itself
                await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "service restart"})

    async def receive(self) -> Message:
        if self._for_restart:
            return {"type": "websocket.disconnect", "code": SERVICE_RESTART, "reason": "service restart"}
        return await self._receive()

    async def send(self, message: Message) -> None:
        if self._for_restart:
            if message["type"] == "websocket.close":
                return
            # As ASGI wants it of servers: who only sends would never hear of it otherwise.
            raise ClosedForRestart("the websocket was closed with 1012: the process drains")
        if message["type"] in {"websocket.close", "websocket.http.response.start"}:
            self.closed = True
        await self._send(message)
        if message["type"] == "websocket.accept":
            self.accepted = True
            if self._asked:
                await self.close()
