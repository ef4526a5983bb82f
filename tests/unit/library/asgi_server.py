"""A server of hand-written messages for ASGI applications, and applications for it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


def request(path: str = "/", *, version: str = "1.1", body: bool = False) -> dict[str, Any]:
    headers = [(b"host", b"shop")] + ([(b"content-length", b"3")] if body else [])
    return {"type": "http", "http_version": version, "method": "GET", "path": path, "headers": headers}


def websocket(path: str = "/ws", *, answers: bool = True) -> dict[str, Any]:
    extensions: Message = {"websocket.http.response": {}} if answers else {}
    return {"type": "websocket", "http_version": "1.1", "path": path, "headers": [], "extensions": extensions}


BODY = {"type": "http.request", "body": b"", "more_body": False}
CONNECT = {"type": "websocket.connect"}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
END = {"type": "http.response.body", "body": b"done", "more_body": False}


class Exchange:
    """One connection: runs the application in a task, as servers do, and keeps what it sent."""

    def __init__(self, app: Any, scope: Message, *incoming: Message) -> None:
        self.sent: list[Message] = []
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._sent_some = asyncio.Event()
        for message in incoming or ((BODY,) if scope["type"] == "http" else ()):
            self._incoming.put_nowait(message)
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self._sent_some.set()

    def arrive(self, message: Message) -> None:
        self._incoming.put_nowait(message)

    async def until_sent(self, kind: str) -> Message:
        async with asyncio.timeout(10):
            while True:
                for message in self.sent:
                    if message["type"] == kind:
                        return message
                self._sent_some.clear()
                await self._sent_some.wait()

    async def done(self) -> list[Message]:
        async with asyncio.timeout(10):
            await self.task
        return self.sent

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if message["type"].endswith("response.start")]

    def header(self, name: bytes) -> list[bytes]:
        """Return the values of a header of the response."""
        (start,) = [message for message in self.sent if message["type"].endswith("response.start")]
        return [value for key, value in start.get("headers", ()) if key.lower() == name]


class Held:
    """An application whose responses wait until they are let go."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.cleaned_up = False
        self.start_first = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.start_first:
            await send(START)
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.cleaned_up = True
            raise
        if not self.start_first:
            await send(START)
        await send(END)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(END)
