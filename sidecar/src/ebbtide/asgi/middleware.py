"""Every request and every websocket as work in flight, and the right answers while the process drains."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from ebbtide.asgi.answers import (
    App,
    Connection,
    Message,
    Receive,
    Send,
    closing,
    has_body,
    is_http1,
    refuse,
    refuse_websocket,
)
from ebbtide.asgi.lifespan import Lifespan
from ebbtide.asgi.soft import ClosedForRestart, Endings, OnDrain, Response, Websocket
from ebbtide.errors import Refused
from ebbtide.runtime import Runtime
from ebbtide.tasks.block import Block

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope

HEALTH_PATHS = frozenset({"/health", "/healthz", "/livez", "/ping", "/readyz"})
"""Answered at any time: a liveness probe that gets 503 has the kubelet kill what drains."""
RETRY_S = 1.0

_GONE = {"ClientDisconnect", "ClientDisconnected", "WebSocketDisconnect"}
"""What frameworks and servers call the end of a client. By name: none of them is imported for it."""

Policy = OnDrain | Callable[[Connection], OnDrain]


class DrainMiddleware:
    """Count every request and every websocket as work in flight, and answer for the process while it drains.

    ```python
    runtime = ebbtide.Runtime.from_env()
    app = DrainMiddleware(app, runtime)
    ```

    It starts the runtime when the application has started, and lets it drain before the application stops, unless the
    application has entered it by itself. From the start of a drain on, responses of HTTP/1 close their connections.
    Once intake is closed, new requests get 503 with `Retry-After`; so do requests that the application refuses by
    `Refused`, at any time, and those that the drain cancelled before they were answered. What the application raises
    goes on to the server.

    Args:
        app: An ASGI 3 application.
        runtime: Of this process.
        scope: Whose work requests are; None: the runtime's scope `http`.
        http: What a drain means to requests; a function is asked for each, with ASGI's scope of it.
        websocket: The same for websockets.
        health_paths: Requests that are passed on at any time and are no work, with or without the server's root path.

    Raises:
        ValueError: A policy is neither a function nor one of `OnDrain`.
    """

    def __init__(
        self,
        app: App,
        runtime: Runtime,
        *,
        scope: Scope | None = None,
        http: Policy = OnDrain.FINISH,
        websocket: Policy = OnDrain.END,
        health_paths: Collection[str] = HEALTH_PATHS,
    ) -> None:
        self._app = app
        self._runtime = runtime
        self._requests = runtime.scope("http") if scope is None else scope
        # None where no request needs to be looked at for it, which is the usual case.
        self._http = None if http == OnDrain.FINISH else _policy(http)
        self._websocket = _policy(websocket)
        self._health_paths = frozenset(health_paths)
        self._endings = Endings()
        runtime.on_intake_closed(self._endings.end_all)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http":
            if kind == "websocket":
                await self._serve_websocket(scope, receive, send)
            elif kind == "lifespan":
                await Lifespan(self._app, self._runtime, receive, send).run(scope)
            else:
                await self._app(scope, receive, send)
            return
        path = scope["path"]
        # By the spec of ASGI a path begins with the root path, and not every server puts that there.
        if path in self._health_paths or path.removeprefix(scope.get("root_path") or "") in self._health_paths:
            await self._app(scope, receive, send)
            return
        if self._http is not None and self._http(scope) == OnDrain.END:
            await self._serve_ending(scope, receive, send)
            return
        runtime = self._runtime
        started = False

        # No coroutine of its own: all that it returns is the server's.
        def answer(message: Message) -> Awaitable[None]:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if runtime._effects.draining and is_http1(scope):  # noqa: SLF001 (the property would cost a call)
                    message = closing(message)
            return send(message)

        block = self._requests.track(path)
        try:
            block.__enter__()
        except Refused as refused:
            await _turn_away(refused, scope, receive, send)
            return
        try:
            await self._app(scope, receive, answer)
        except BaseException as error:
            if not await self._is_answered(block, error, scope, None if started else send):
                raise
        else:
            block.__exit__(None, None, None)

    async def _serve_ending(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve a request that is asked to end when intake closes."""
        block = self._requests.track(scope["path"])
        try:
            block.__enter__()
        except Refused as refused:
            await _turn_away(refused, scope, receive, send)
            return
        response = Response(receive, send, lambda: self._runtime.draining and is_http1(scope))
        self._endings.add(response, late=not self._runtime.intake_open)
        try:
            await self._app(scope, response.receive, response.send)
            await response.finish()
        except BaseException as error:
            if not await self._is_answered(block, error, scope, None if response.started else send):
                raise
        else:
            block.__exit__(None, None, None)
        finally:
            response.let_go()
            self._endings.remove(response)

    async def _serve_websocket(self, scope: Connection, receive: Receive, send: Send) -> None:
        ends = self._websocket(scope) == OnDrain.END
        block = self._requests.track(scope["path"])
        try:
            block.__enter__()
        except Refused as refused:
            if (await receive())["type"] == "websocket.connect":
                await refuse_websocket(scope, send, refused.retry_after_s)
            return
        websocket = Websocket(receive, send)
        if ends:
            self._endings.add(websocket, late=not self._runtime.intake_open)
        try:
            await self._app(scope, websocket.receive, websocket.send)
        except ClosedForRestart:
            block.__exit__(None, None, None)
        except BaseException as error:
            answered = isinstance(error, Refused) and not (websocket.accepted or websocket.closed)
            try:
                if isinstance(error, Refused) and answered:
                    await refuse_websocket(scope, send, error.retry_after_s)
                elif isinstance(error, asyncio.CancelledError) and self._runtime.draining:
                    await websocket.close()
            finally:
                _leave(block, error, answered=answered)
            if not answered:
                raise
        else:
            block.__exit__(None, None, None)
        finally:
            self._endings.remove(websocket)

    async def _is_answered(self, block: Block, error: BaseException, scope: Connection, send: Send | None) -> bool:
        """Answer what can be answered for a request that raised; False: the error goes on to the server.

        Args:
            block: Of the request; it is left here, so that the drain waits for the answer.
            error: What it raised.
            scope: ASGI's.
            send: The server's; None: the response has started, and there is no second one.
        """
        draining = self._runtime.draining
        close = draining and is_http1(scope)
        answered = send is not None and isinstance(error, Refused)
        try:
            if send is not None and isinstance(error, Refused):
                await refuse(send, error.retry_after_s, close=close)
            elif send is not None and draining and isinstance(error, asyncio.CancelledError):
                # Whoever asked is told so, where somebody still listens; the cancel goes on to whom it belongs.
                await refuse(send, RETRY_S, close=close)
        finally:
            _leave(block, error, answered=answered)
        return answered


def _policy(policy: Policy) -> Callable[[Connection], OnDrain]:
    if callable(policy):
        return policy
    always = OnDrain(policy)
    return lambda _connection: always


def _leave(block: Block, error: BaseException, *, answered: bool) -> None:
    """Count the end of a request that raised."""
    if answered:
        block.__exit__(None, None, None)
    elif type(error).__name__ in _GONE:
        # Its client went away: it was given up, and did not fail.
        block.__exit__(asyncio.CancelledError, None, None)
    else:
        block.__exit__(type(error), error, error.__traceback__)


async def _turn_away(refused: Refused, scope: Connection, receive: Receive, send: Send) -> None:
    """Answer a request that was not admitted."""
    close = is_http1(scope)
    await refuse(send, refused.retry_after_s, close=close, unread=receive if close and has_body(scope) else None)
