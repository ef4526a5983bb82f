"""Starts a server behind the middleware, connects to it in every way, ends it, and tells what each client saw."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    RejectConnection,
    Request,
    TextMessage,
)

from tests.contract.servers.running import (
    ASGI,
    GIVE_UP_S,
    SERVERS,
    Server,
    Trigger,
    free_port,
    get,
    lines,
    running,
    spoken,
    wait,
)

APPLICATION = "tests.contract.servers.drained:app"
FINISHES_S = 2.1
"""A request that ends after intake has closed, and before the drain timeout."""
UPLOAD = b"x" * (4 << 20)
"""More than the kernel keeps for a reader that is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """What the clients of one server saw of its end."""

    in_flight: str
    kept_alive: str
    """A request on a connection that was idle when the drain began."""
    late: str
    """A request after intake closed."""
    upload: str
    """The same with a large body."""
    websocket: str
    late_websocket: str
    events: str
    code: str
    """How the process ended."""


def _behind(server: Server) -> Server:
    return Server(
        server.name,
        lambda port: [APPLICATION if part == ASGI else part for part in server.command(port)],
    )


BEHIND = tuple(_behind(server) for server in SERVERS if ASGI in server.command(0))


class Client:
    """One connection of HTTP/1.1, kept alive as long as the server likes."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)

    def close(self) -> None:
        self._connection.close()

    def ask(self, path: str, body: bytes | None = None) -> str:
        """Return the status, whether the connection is closed with it, and when to come again."""
        try:
            if self._connection.sock is None:
                self._connection.connect()
            self._connection.auto_open = 0  # a connection that the server closed is not opened again in silence
            self._connection.request("GET" if body is None else "POST", path, body=body)
            answer = self._connection.getresponse()
            answer.read()
        except ConnectionRefusedError:
            return "refused"
        except (OSError, http.client.HTTPException):
            return "no answer"
        seen = [str(answer.status)]
        if (answer.getheader("connection") or "").lower() == "close":
            seen.append("close")
        if again := answer.getheader("retry-after"):
            seen.append(f"again in {again} s")
        return ", ".join(seen)

    def listen(self, began: Callable[[], object]) -> str:
        """Read a stream to its end."""
        try:
            self._connection.request("GET", "/events")
            answer = self._connection.getresponse()
            answer.readline()
            began()
            answer.read()
        except (OSError, http.client.HTTPException):
            return "cut off"
        return "ended"


class Chat:
    """One websocket."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def connect(self) -> str:
        """Return `connected`, or what the server answered instead."""
        try:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=GIVE_UP_S)
            self._socket.sendall(self._protocol.send(Request(host="127.0.0.1", target="/ws")))
            return self._until_something()
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "no answer"

    def say(self, text: str) -> str:
        assert self._socket is not None
        self._socket.sendall(self._protocol.send(TextMessage(text)))
        return self._until_something()

    def stay(self) -> str:
        """Wait for the end; return the code of the close."""
        try:
            return self._until_something()
        except OSError:
            return "cut off"

    def _until_something(self) -> str:
        assert self._socket is not None
        while True:
            for event in self._protocol.events():
                match event:
                    case AcceptConnection():
                        return "connected"
                    case RejectConnection(status_code=status):
                        return str(status)
                    case TextMessage(data=text):
                        return text
                    case CloseConnection(code=code):
                        # As clients do: the server learns that its close has arrived.
                        self._socket.sendall(self._protocol.send(event.response()))
                        return str(code)
                    case _:
                        pass
            data = self._socket.recv(65536)
            if not data:
                return "cut off"
            self._protocol.receive_data(data)


def watch(server: Server, trigger: Trigger, folder: Path) -> tuple[Farewell, list[str]]:
    """Run one server once; return what its clients saw, and the notes of the application."""
    port, admin_port = free_port(), free_port()
    notes = folder / "notes"
    with (
        (folder / "log").open("w") as log,
        running(server, port, admin_port, log) as process,
        ThreadPoolExecutor(4) as threads,
        ExitStack() as clients,
    ):

        def client() -> Client:
            return clients.enter_context(closing(Client(port)))

        def chatting() -> Chat:
            return clients.enter_context(closing(Chat(port)))

        wait(
            lambda: get(admin_port, "/readyz") == "200" and get(port, "/healthz") == "200",
            "the server is ready",
            process,
        )
        kept, chat = client(), chatting()
        assert kept.ask("/") == "200"
        assert chat.connect() == "connected"
        assert chat.say("hello") == "hello"
        in_flight = threads.submit(client().ask, f"/?name=in-flight&seconds={FINISHES_S}")
        listening: list[bool] = []
        events = threads.submit(client().listen, lambda: listening.append(True))
        wait(lambda: "in-flight began" in lines(notes) and bool(listening), "requests are in flight", process)
        hook = None
        if trigger is Trigger.PRESTOP:
            hook = threads.submit(get, admin_port, "/drain?start=prestop&wait=20")
        else:
            process.terminate()
        wait(lambda: get(admin_port, "/readyz") != "200", "it drains", process)
        kept_alive = kept.ask("/")
        websocket = threads.submit(chat.stay)
        wait(lambda: _state(admin_port) != "Quiescing", "intake is closed", process)
        late, upload, late_websocket = client().ask("/"), client().ask("/", UPLOAD), chatting().connect()
        if hook is not None:
            hook.result()
            process.terminate()
        code = process.wait(GIVE_UP_S)
        return (
            Farewell(
                in_flight=in_flight.result(),
                kept_alive=kept_alive,
                late=late,
                upload=upload,
                websocket=websocket.result(),
                late_websocket=late_websocket,
                events=events.result(),
                code=spoken(code),
            ),
            lines(notes),
        )


def _state(admin_port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=GIVE_UP_S)
    try:
        connection.request("GET", "/drain")
        return str(json.loads(connection.getresponse().read())["state"])
    except OSError:
        return "gone"
    finally:
        connection.close()
