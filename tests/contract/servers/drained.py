"""An ASGI application behind the middleware, with everything that a drain may meet."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs

from ebbtide.asgi import DrainMiddleware, OnDrain
from tests.contract.servers.service import a_runtime, note


async def _live(receive: Any, send: Any) -> None:
    await receive()
    note("application opened")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    note("application closed")
    await send({"type": "lifespan.shutdown.complete"})


async def _chat(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
    note("websocket ended")


async def _events(receive: Any, send: Any) -> None:
    await receive()  # the body of the request
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    assert (await receive())["type"] == "http.disconnect"
    note("events ended")


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    if "name" in query:
        note(f"{query['name']} began")
    await asyncio.sleep(float(query.get("seconds", "0")))
    if "name" in query:
        note(f"{query['name']} finished")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def _application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _live(receive, send)
    elif scope["type"] == "websocket":
        await _chat(receive, send)
    elif scope["path"] == "/events":
        await _events(receive, send)
    else:
        await _answer(scope, receive, send)


def _streams(scope: Any) -> OnDrain:
    return OnDrain.END if scope["path"] == "/events" else OnDrain.FINISH


app = DrainMiddleware(_application, a_runtime(), http=_streams)
