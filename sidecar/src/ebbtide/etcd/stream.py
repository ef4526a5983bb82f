"""An endless answer as lines, and beats that go up its request."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ebbtide.etcd import wire
from ebbtide.etcd.dial import wait
from ebbtide.etcd.endpoints import Endpoint
from ebbtide.etcd.errors import BadAnswer, TimedOut, Unavailable
from ebbtide.etcd.framing import ChunkedDecoder, FramingError, LineSplitter
from ebbtide.etcd.pool import Request, left_s

OPEN_S = 3.0
"""How long a server may take to answer a request whose body stays open; then it gets the end that it may wait for. An
older replica of the relay gives up after 5 s."""
SEND_S = 5.0


class _Unbuffered(io.RawIOBase):
    """A socket as a file, after a byte that was taken from it already."""

    def __init__(self, sock: socket.socket, begun: bytes) -> None:
        self._raw = sock.makefile("rb", buffering=0)
        self._begun = begun

    def makefile(self, _mode: str) -> io.RawIOBase:
        return self

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self._begun:
            return self._raw.readinto(buffer)
        begun, self._begun = self._begun, b""
        buffer[: len(begun)] = begun
        return len(begun)

    def close(self) -> None:
        self._raw.close()
        super().close()


class UnbufferedResponse(http.client.HTTPResponse):
    """Read the head of an answer and not a byte more: the body is read from the socket itself.

    A buffered file object cannot be read again after a time-out, and nobody can see what is in its buffer.
    """

    def __init__(self, sock: socket.socket, *args: Any, begun: bytes, **kwargs: Any) -> None:
        super().__init__(_Unbuffered(sock, begun), *args, **kwargs)  # type: ignore[arg-type] # calls makefile only


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins."""

    status: int
    chunked: bool
    refusal: bytes
    """The body, where the status is not 200."""
    announced: bool
    """Whether the server says that it takes beats."""
    takes_beats: bool
    """Whether it takes them on this connection."""
    response: http.client.HTTPResponse
    """Whose socket it is where the server announced its end: let go of, it would close it."""


def begin(
    connection: http.client.HTTPConnection,
    request: Request,
    deadline_at: float,
    interrupted: Callable[[], bool],
    *,
    beats: bool,
) -> Head:
    """Send a request and read the head of its answer.

    Args:
        connection: A new one.
        request: What to ask.
        deadline_at: Monotonic time until which the head must be there.
        interrupted: Asked often while waiting.
        beats: Whether to leave the request open for beats.

    Raises:
        OSError: It was not sent, or not answered in time.
        http.client.HTTPException: The answer is no HTTP.
        Interrupted: `interrupted` said so.
    """
    sock = connection.sock
    headers, body = dict(request.headers), request.body
    if beats:
        headers |= {"Transfer-Encoding": "chunked", wire.HEARTBEAT: wire.SPARING}
        body = _chunk(body + wire.OPENING_END)
    # A body of bytes goes out as it is, whatever the headers say.
    connection.request("POST", request.path, body, headers)
    sock.setblocking(False)
    first = b""
    if beats:
        with contextlib.suppress(TimeoutError):
            first = _receive(sock, 1, min(deadline_at, time.monotonic() + OPEN_S), interrupted)
        if not first:
            beats = False
            _send(sock, b"0\r\n\r\n", deadline_at)
    # Not by a look whether there is something to read, which may be TLS's own.
    first = first or _receive(sock, 1, deadline_at, interrupted)
    sock.settimeout(left_s(deadline_at))
    connection.response_class = functools.partial(UnbufferedResponse, begun=first)  # type: ignore[assignment]
    response = connection.getresponse()
    refusal = b"" if response.status == 200 else response.read(wire.MOST_FAILURE_BYTES)
    announced = response.headers[wire.HEARTBEAT] is not None
    return Head(response.status, bool(response.chunked), refusal, announced, beats and announced, response)


class Stream:
    """Lines of an endless answer, and beats up its request; belongs to one thread, as TLS wants it."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        sock: socket.socket,
        endpoint: Endpoint,
        header: str | None,
        head: Head,
    ) -> None:
        self.endpoint = endpoint
        self.takes_beats = head.takes_beats
        self.header = header
        """The credentials that opened it."""
        self._sock = sock
        self._connection = connection
        self._response = head.response
        self._chunks = ChunkedDecoder() if head.chunked else None
        self._lines = LineSplitter()
        sock.setblocking(False)

    def lines(self, patience_s: float, interrupted: Callable[[], bool]) -> list[bytes]:
        """Wait for the next complete lines.

        Args:
            patience_s: Seconds without a line after which to give up.
            interrupted: Asked often while waiting.

        Raises:
            TimedOut: No line came.
            Unavailable: The connection ended or broke.
            BadAnswer: What came is no line.
            Interrupted: `interrupted` said so.
        """
        deadline_at = time.monotonic() + patience_s
        while True:
            try:
                data = _receive(self._sock, 65536, deadline_at, interrupted)
                body = data if self._chunks is None else self._chunks.feed(data)
                lines = self._lines.feed(body)
                if lines:
                    return lines
                if self._chunks is not None and self._chunks.finished:
                    raise ConnectionResetError("the server ended it")
            except TimeoutError as error:
                raise TimedOut(f"watch: silent for {patience_s:g} s", endpoint=self.endpoint.url) from error
            except OSError as error:
                raise Unavailable(f"watch: {error}", endpoint=self.endpoint.url) from error
            except FramingError as error:
                raise BadAnswer(f"watch: {error}", endpoint=self.endpoint.url) from error

    def beat(self, lease: int) -> None:
        """Ask, up the open request, for a lease to be kept alive; the answer is one of the lines.

        Raises:
            Unavailable: The connection broke, or takes nothing.
        """
        try:
            _send(self._sock, _chunk(wire.encode_lease(lease) + b"\n"), time.monotonic() + SEND_S)
        except OSError as error:
            raise Unavailable(f"watch: {error}", endpoint=self.endpoint.url) from error

    def close(self) -> None:
        self._connection.close()
        self._response.close()
        self._sock.close()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _receive(sock: socket.socket, size: int, deadline_at: float, interrupted: Callable[[], bool]) -> bytes:
    """Return at least one byte."""
    while True:
        try:
            data = sock.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            wait(sock, select.POLLIN, deadline_at, interrupted)
        except ssl.SSLWantWriteError:
            wait(sock, select.POLLOUT, deadline_at, interrupted)
        else:
            if not data:
                raise ConnectionResetError("the server ended it")
            return data


def _send(sock: socket.socket, data: bytes, deadline_at: float) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            wait(sock, select.POLLOUT, deadline_at)
        except ssl.SSLWantReadError:
            wait(sock, select.POLLIN, deadline_at)
