"""An ASGI application with the library in its lifespan: how any ASGI framework is to be used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import ebbtide
from tests.contract.servers.service import a_runtime, handle

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    def __init__(self) -> None:
        self._requests: ebbtide.Scope | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            # Entered here and not earlier: the server's own signal handlers are installed by now.
            async with a_runtime() as runtime:
                self._requests = runtime.scope("requests")
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ebbtide.StartFailed as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: dict[str, Any], send: Send) -> None:
        assert self._requests is not None
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
        try:
            await handle(self._requests, query["name"], float(query["seconds"]))
        except ebbtide.Refused as refused:
            await self._answer(send, 503, [(b"retry-after", f"{refused.retry_after_s:.0f}".encode())])
        except asyncio.CancelledError:
            # Whoever asked is told so, where somebody still listens.
            await self._answer(send, 503, [])
            raise
        else:
            await self._answer(send, 200, [])

    async def _answer(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *headers]})
        await send({"type": "http.response.body", "body": b""})


app = Application()
