"""One request and its answer over kept connections."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ebbtide.etcd import wire
from ebbtide.etcd.dial import dial, never, wait
from ebbtide.etcd.endpoints import Endpoint

IDLE_LIMIT_S = 20.0
"""How long an unused connection is trusted: what lies between may have forgotten it."""
MOST_IDLE = 4
MOST_ANSWER_BYTES = 64 * 1024 * 1024


class Lost(Exception):
    """The request was sent, and the connection failed before the answer was there; the cause says how."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one attempt may take: monotonic times until which it may connect, and wait for its answer."""

    connect_by: float
    answer_by: float
    interrupted: Callable[[], bool] = never


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    takes_beats: bool
    """Whether the server says that it takes beats up a watch."""


class Pool:
    """Connections that wait for their next request. Safe to use from several threads."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._closed = False
        self._idle: list[tuple[Endpoint, http.client.HTTPConnection, float]] = []

    def exchange(self, endpoint: Endpoint, request: Request, limits: Limits, *, again: bool) -> Answer:
        """Send a request and return its answer.

        Args:
            endpoint: Whom to ask.
            request: What to ask.
            limits: How long it may take.
            again: Whether to send it again where a kept connection turns out to be dead after it was sent.

        Raises:
            OSError: It was not sent as a whole, so the server cannot have acted on it.
            Lost: It was sent, and the answer did not come.
            Interrupted: The caller does not want the answer any more.
        """
        while True:
            kept = self._take(endpoint)
            connection = kept or self.connect(endpoint, limits.connect_by, limits.interrupted)
            try:
                answer = _converse(connection, request, limits)
            except Lost as lost:
                connection.close()
                # The peer may close a kept connection at the moment of its reuse.
                if again and kept is not None and not isinstance(lost.__cause__, TimeoutError):
                    continue
                raise
            except OSError:
                connection.close()
                if kept is not None:
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            self._give_back(endpoint, connection)
            return answer

    def prune(self) -> None:
        """Close what nobody has used for long."""
        before = time.monotonic() - IDLE_LIMIT_S
        with self._lock:
            old = [connection for _endpoint, connection, since in self._idle if since < before]
            self._idle = [entry for entry in self._idle if entry[2] >= before]
        for connection in old:
            connection.close()

    def connect(
        self, endpoint: Endpoint, deadline_at: float, interrupted: Callable[[], bool]
    ) -> http.client.HTTPConnection:
        """Open a connection that is not kept.

        Raises:
            OSError: It cannot be opened by `deadline_at`.
            Interrupted: The caller does not want it any more.
        """
        if endpoint.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        sock = dial(endpoint, self._tls, deadline_at, interrupted)
        sock.settimeout(left_s(deadline_at))
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
        connection.auto_open = 0  # a closed one must not come back without TLS
        connection.sock = sock
        return connection

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _endpoint, connection, _since in idle:
            connection.close()

    def after_fork(self) -> None:
        """Forget, in a child, the parent's sockets, and the lock that one of its threads may have held."""
        self._lock = threading.Lock()
        idle, self._idle = self._idle, []
        for _endpoint, connection, _since in idle:
            # Closing the child's descriptor says nothing to the peer: no FIN, no TLS farewell.
            connection.close()

    def _take(self, endpoint: Endpoint) -> http.client.HTTPConnection | None:
        now = time.monotonic()
        while True:
            with self._lock:
                if not self._idle:
                    return None
                home, connection, since = self._idle.pop()
            if home == endpoint and now - since < IDLE_LIMIT_S and not _has_news(connection.sock):
                return connection
            connection.close()

    def _give_back(self, endpoint: Endpoint, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            # The answer may have announced that the server closes.
            if connection.sock is not None and not self._closed and len(self._idle) < MOST_IDLE:
                self._idle.append((endpoint, connection, time.monotonic()))
                return
        connection.close()


def left_s(deadline_at: float) -> float:
    """Return the seconds until a monotonic time; never 0, which a socket takes for: do not block."""
    return max(deadline_at - time.monotonic(), 0.001)


def _converse(connection: http.client.HTTPConnection, request: Request, limits: Limits) -> Answer:
    sock = connection.sock
    sock.settimeout(left_s(limits.answer_by))
    # Head and body go out in one sendall, which fails only where not every byte was taken.
    connection.request("POST", request.path, request.body, request.headers)
    try:
        wait(sock, select.POLLIN, limits.answer_by, limits.interrupted)
        sock.settimeout(left_s(limits.answer_by))
        response = connection.getresponse()
        takes_beats = response.headers[wire.HEARTBEAT] is not None
        return Answer(response.status, _body(response, sock, limits.answer_by), takes_beats)
    except (OSError, http.client.HTTPException) as error:
        raise Lost from error


def _body(response: http.client.HTTPResponse, sock: socket.socket, deadline_at: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    # Python 3.13 and later close it at its last byte, and the socket with it where the server announced its end.
    while not response.isclosed():
        sock.settimeout(left_s(deadline_at))
        piece = response.read1(65536)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if size > MOST_ANSWER_BYTES:
            raise http.client.HTTPException(f"the answer is longer than {MOST_ANSWER_BYTES} bytes")
    body = b"".join(pieces)
    # read1, which lets every wait have its own limit, neither notices an early end nor marks the answer as read.
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    response.close()
    return body


def _has_news(sock: socket.socket) -> bool:
    """Say whether an idle connection has something to read: its end, as a rule."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))
