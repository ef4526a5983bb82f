"""What is answered while a process drains: closed connections, and refusals that say when to come again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Connection = MutableMapping[str, Any]
"""What ASGI calls the scope of a request or a websocket."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Connection, Receive, Send], Awaitable[None]]

CLOSE = (b"connection", b"close")
SERVICE_UNAVAILABLE = 503
SERVICE_RESTART = 1012
LINGER_S = 2.0
"""How long a refused request may still send its body, in seconds.

A server that closes a socket on unread bytes resets it, and a reset may overtake the answer.
"""
_OF_ONE_CONNECTION = {b"connection", b"keep-alive"}


def closing(message: Message) -> Message:
    """Return the start of a response with `Connection: close`, whatever it said of the connection before."""
    headers = [pair for pair in message.get("headers", ()) if bytes(pair[0]).lower() not in _OF_ONE_CONNECTION]
    return {**message, "headers": [*headers, CLOSE]}


def is_http1(connection: Connection) -> bool:
    """Say whether the connection may be told to close: from HTTP/2 on that header is forbidden (RFC 9113, 8.2.2)."""
    return str(connection.get("http_version", "1.1")).startswith("1")


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """Return the header: whole seconds, and at least one (RFC 9110, 10.2.3)."""
    return (b"retry-after", str(max(1, math.ceil(seconds))).encode())


def has_body(connection: Connection) -> bool:
    """Say whether a request announces a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and bytes(value).strip() != b"0")
        for name, value in connection.get("headers", ())
    )


async def refuse(send: Send, retry_after_s: float, *, close: bool, unread: Receive | None = None) -> None:
    """Answer 503 with `Retry-After`.

    503 for limits as well, and not 429: it is the process that has no room, whoever asks. Proxies try another backend
    after a 503, and blame the caller for a 429.

    Args:
        send: The server's.
        retry_after_s: Seconds after which another try may be worth while.
        close: Whether the connection ends with it.
        unread: The server's `receive`, where there may be a body that nobody has read.
    """
    headers = [retry_after(retry_after_s), *([CLOSE] if close else [])]
    if unread is None:
        headers.append((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": SERVICE_UNAVAILABLE, "headers": headers})
    if unread is not None:
        # The status is out now, and the end is held back. Without a length, by which some servers would see that
        # nothing more comes, and close.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await _discard(unread)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def refuse_websocket(connection: Connection, send: Send, retry_after_s: float) -> None:
    """Refuse a handshake: 503 with `Retry-After` where the server can, and otherwise its own refusal, which is 403."""
    if "websocket.http.response" not in (connection.get("extensions") or {}):
        await send({"type": "websocket.close", "code": SERVICE_RESTART})
        return
    headers = [(b"content-length", b"0"), retry_after(retry_after_s), *([CLOSE] if is_http1(connection) else [])]
    await send({"type": "websocket.http.response.start", "status": SERVICE_UNAVAILABLE, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    """Read the rest of a body, for a short while."""
    try:
        async with asyncio.timeout(LINGER_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
