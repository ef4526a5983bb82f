"""The runtime inside the lifespan of an application: it starts when that has, and has drained before that stops."""

from __future__ import annotations

from ebbtide.asgi.answers import App, Connection, Message, Receive, Send
from ebbtide.errors import EbbtideError
from ebbtide.protocol import PodState
from ebbtide.runtime import Runtime


class Lifespan:
    """Pass a lifespan on to an application, and run a runtime between its start and its stop.

    Inside, because what drains still needs what the application has opened. Servers have installed their signal
    handlers by then. A runtime that the application has entered by itself is left to it. An application without a
    lifespan, as it says by raising or returning before it has asked for anything, gets one.
    """

    def __init__(self, app: App, runtime: Runtime, receive: Receive, send: Send) -> None:
        self._app = app
        self._runtime = runtime
        self._from_server = receive
        self._to_server = send
        self._asked = False
        """The application takes part: it has asked what is the matter."""
        self._answered = False
        """The application said how its start went."""
        self._entered = False
        self._failure: EbbtideError | None = None

    async def run(self, connection: Connection) -> None:
        """Go through one lifespan, from the server's start to its end."""
        try:
            await self._run(connection)
        except BaseException as error:
            if self._entered:
                self._entered = False
                await self._runtime.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _run(self, connection: Connection) -> None:
        try:
            await self._app(connection, self._receive, self._send)
        except Exception:
            if self._asked or self._answered:
                raise
        finally:
            if self._failure is not None:
                # Last, and whatever its stop was like: servers leave at once when they read this.
                await self._to_server({"type": "lifespan.startup.failed", "message": str(self._failure)})
        if self._failure is not None:
            return
        stands_in = not self._answered
        if stands_in:
            if not self._asked:
                await self._receive()
            await self._send({"type": "lifespan.startup.complete"})
            if self._failure is not None:
                await self._to_server({"type": "lifespan.startup.failed", "message": str(self._failure)})
                return
        if stands_in or self._entered:
            await self._receive()
            await self._to_server({"type": "lifespan.shutdown.complete"})

    async def _receive(self) -> Message:
        if self._failure is not None:
            return {"type": "lifespan.shutdown"}
        message = await self._from_server()
        self._asked = True
        if message["type"] == "lifespan.shutdown" and self._entered:
            self._entered = False
            await self._runtime.__aexit__(None, None, None)
        return message

    async def _send(self, message: Message) -> None:
        if self._failure is not None:
            return  # how it stopped after a start that failed is nothing that the server waits for
        match message["type"]:
            case "lifespan.startup.complete":
                self._answered = True
                if not await self._enter():
                    return
            case "lifespan.startup.failed":
                self._answered = True
            case _:
                pass
        await self._to_server(message)

    async def _enter(self) -> bool:
        # One that has left is entered too: it says that it runs only once.
        if self._runtime.state not in {PodState.STARTING, PodState.EXITING}:
            return True
        try:
            await self._runtime.__aenter__()
        except EbbtideError as error:
            self._failure = error
            return False
        self._entered = True
        return True
