"""An endless answer as lines."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from ebbtide.etcd.dial import wait
from ebbtide.etcd.endpoints import Endpoint
from ebbtide.etcd.errors import BadAnswer, TimedOut, Unavailable
from ebbtide.etcd.framing import ChunkedDecoder, FramingError, LineSplitter


class _Unbuffered:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> socket.SocketIO:
        return self._sock.makefile("rb", buffering=0)


class UnbufferedResponse(http.client.HTTPResponse):
    """Read the head of an answer and not a byte more: the body is read from the socket itself.

    A buffered file object cannot be read again after a time-out, and nobody can see what is in its buffer.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Unbuffered(sock), *args, **kwargs)  # type: ignore[arg-type] # calls makefile only


class Stream:
    """Lines of an endless answer; belongs to one thread."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        sock: socket.socket,
        endpoint: Endpoint,
        header: str | None,
        *,
        chunked: bool,
    ) -> None:
        self.endpoint = endpoint
        self.header = header
        """The credentials that opened it."""
        self._sock = sock
        self._connection = connection
        self._chunks = ChunkedDecoder() if chunked else None
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
                data = self._receive(deadline_at, interrupted)
                if not data:
                    raise ConnectionResetError("the server ended it")
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

    def close(self) -> None:
        self._connection.close()
        self._sock.close()

    def _receive(self, deadline_at: float, interrupted: Callable[[], bool]) -> bytes:
        while True:
            try:
                return self._sock.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                wait(self._sock, select.POLLIN, deadline_at, interrupted)
            except ssl.SSLWantWriteError:
                wait(self._sock, select.POLLOUT, deadline_at, interrupted)
