"""Open a connection within a deadline, or drop it at once when the caller loses interest."""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable

from ebbtide.etcd.endpoints import Endpoint

SLICE_S = 0.1
"""How long a wait may go on without asking whether somebody still wants the answer."""

KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 14_000}
"""Seconds of quiet, seconds between probes, and probes without an answer: a dead path is noticed after 14 s, where the
system's own settings take two hours. Milliseconds that what was sent may go without a receipt: the same where a beat is
under way, since a kernel that repeats a packet does not probe. The kernels alone speak; not every system has every
option."""


class Interrupted(Exception):
    """The caller does not want the answer any more."""


def never() -> bool:
    """Never interrupt."""
    return False


def wait(sock: socket.socket, event: int, deadline_at: float, interrupted: Callable[[], bool] = never) -> None:
    """Wait until a socket is ready.

    Args:
        sock: The socket.
        event: `select.POLLIN` or `select.POLLOUT`.
        deadline_at: Monotonic time after which to give up.
        interrupted: Asked every `SLICE_S` seconds.

    Raises:
        TimeoutError: The deadline passed.
        Interrupted: `interrupted` said so.
    """
    # poll, since select fails on descriptors above 1023.
    poller = select.poll()
    poller.register(sock, event)
    while True:
        if interrupted():
            raise Interrupted
        left_s = deadline_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        if poller.poll(min(left_s, SLICE_S) * 1000):
            return


def dial(
    endpoint: Endpoint,
    tls: ssl.SSLContext | None,
    deadline_at: float,
    interrupted: Callable[[], bool] = never,
) -> socket.socket:
    """Connect, with TLS where the endpoint has it, and return a socket that does not block.

    Only the resolution of the name knows no deadline.

    Raises:
        OSError: Nothing listens there, the certificate is not trusted, or the deadline passed.
        Interrupted: `interrupted` said so.
    """
    failure: OSError | None = None
    addresses = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _name, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        # An address that swallows packets leaves time for the next one.
        share_s = max(deadline_at - time.monotonic(), 0.0) / (len(addresses) - number)
        try:
            return _connect(sock, address, endpoint, tls, time.monotonic() + share_s, interrupted)
        except OSError as error:
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise failure or OSError(f"{endpoint.host}: no address")


def _connect(
    sock: socket.socket,
    address: object,
    endpoint: Endpoint,
    tls: ssl.SSLContext | None,
    deadline_at: float,
    interrupted: Callable[[], bool],
) -> socket.socket:
    sock.setblocking(False)
    # Small requests wait for nothing; a peer that vanished is noticed by the kernel too.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    try:
        sock.connect(address)  # type: ignore[arg-type] # whatever getaddrinfo said
    except BlockingIOError:
        wait(sock, select.POLLOUT, deadline_at, interrupted)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code)) from None
    if not endpoint.tls or tls is None:
        return sock
    secured = tls.wrap_socket(sock, server_hostname=endpoint.host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                wait(secured, select.POLLIN, deadline_at, interrupted)
            except ssl.SSLWantWriteError:
                wait(secured, select.POLLOUT, deadline_at, interrupted)
            else:
                return secured
    except BaseException:
        secured.close()
        raise
