"""Connections to the admin server: how many there may be, and which one makes way for another.

Probes are open to whoever reaches the port, and a liveness probe that finds no room ends the process with all its work.
So nobody keeps others out by holding connections: the ones that ask for nothing make way.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from ebbtide.settings import EVERYWHERE

logger = logging.getLogger("ebbtide")

MOST_CONNECTIONS = 32
"""Probes, one scraper, one preStop, and room; more are refused rather than served by more threads."""
IDLE_S = 10.0
"""A connection that says nothing for so long is closed."""


class Server(ThreadingHTTPServer):
    """Serve each connection in a thread of its own, and a limited number of them.

    Where that is reached, the connection whose last request is the longest ago is closed in favor of the new one; only
    where every one is held by somebody who may is the new one refused.

    Args:
        address: Host and port; host `::`: every address, IPv4 ones too.
        handler: A `Connection`.

    Raises:
        OSError: There is no listening there.
        TypeError: The host can be no host's name.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[Connection]) -> None:
        host, port = address
        if host == EVERYWHERE and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"  # noqa: S104 (as asked for, on a machine without IPv6)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._changing = threading.Lock()
        self._waiting: dict[socket.socket, None] = {}
        """For the rest of a request, or for who asked to read the answer; who has waited longest comes first."""
        self._held: set[socket.socket] = set()
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        if self.server_address[0] == EVERYWHERE:
            # The machine's own default may be otherwise (`net.ipv6.bindv6only`).
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's own, which asks for the full name of the host: where no DNS answers, that takes seconds.
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._make_room(request):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        # Where every connection ends, whatever ended it.
        with self._changing:
            self._waiting.pop(request, None)
            self._held.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (the base class's signature)
        error = sys.exception()
        # A caller that hangs up is no error of ours; anything else must be seen.
        level = logging.DEBUG if isinstance(error, (ConnectionError, TimeoutError)) else logging.ERROR
        logger.log(level, "ebbtide: admin request from %s failed", client_address, exc_info=error)

    def wait_for_request(self, connection: socket.socket) -> bool:
        """Take note that a connection waits for its next request; False where it had to make way."""
        with self._changing:
            if connection not in self._waiting and connection not in self._held:
                return False
            self._held.discard(connection)
            self._waiting.setdefault(connection)
            return True

    def take_request(self, connection: socket.socket) -> None:
        """Take note that a request has come: others make way before it does."""
        with self._changing:
            if connection in self._waiting:
                del self._waiting[connection]
                self._waiting[connection] = None

    def hold(self, connection: socket.socket) -> None:
        """Let a connection keep its place until its request is answered."""
        with self._changing:
            if connection in self._waiting:
                del self._waiting[connection]
                self._held.add(connection)

    def _make_room(self, connection: socket.socket) -> bool:
        with self._changing:
            if len(self._waiting) + len(self._held) >= MOST_CONNECTIONS:
                longest = next(iter(self._waiting), None)
                if longest is None:
                    return False
                del self._waiting[longest]
                # Wakes its thread, which closes it, also where it waits for somebody who does not read the answer.
                with contextlib.suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)
            self._waiting[connection] = None
            return True


class Connection(BaseHTTPRequestHandler):
    """Read one request after the other, and keep the server informed of that."""

    protocol_version = "HTTP/1.1"
    server_version = "ebbtide"
    sys_version = ""
    timeout = IDLE_S
    server: Server

    def handle_one_request(self) -> None:
        if self.server.wait_for_request(self.connection):
            super().handle_one_request()
        else:
            self.close_connection = True

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.server.take_request(self.connection)
        return parsed

    def hold(self) -> None:
        """Keep the place of this connection until the request is answered: who asks may wait."""
        self.server.hold(self.connection)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        logger.debug("ebbtide: admin " + format, *args)  # noqa: G003 (the base class's format)
