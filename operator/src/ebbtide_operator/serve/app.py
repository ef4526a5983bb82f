"""The two ports: HTTPS for the API server and for pods, plain HTTP for probes and Prometheus."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from asyncio import sslproto
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NoReturn

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from ebbtide_operator.metrics import Metrics
from ebbtide_operator.serve import memory
from ebbtide_operator.serve.newcomers import Newcomers

MAX_BODY = 4 * 2**20
"""An AdmissionReview holds a whole pod, and etcd lets no object grow past 1.5 MiB."""
KEEP_ALIVE_S = 120.0
"""Longer than the 90 s of the API server's client, so that never both use and close a connection at once."""
CLOSE_S = 2.0
"""How long open answers may take once the server closes; watches of pods would not end by themselves."""
HANDSHAKE_S = 10.0
"""How long a client may take for its part of the TLS handshake; asyncio's own limit is a minute."""
TLS_BUFFER = 16 * 1024
"""Bytes that each TLS connection reads at a time, a record; of asyncio's loop. docs/decisions/0012 says why."""
RECEIVE_BUFFER = 32 * 1024
"""Bytes that the kernel holds for a connection until they are read (it takes twice that for itself). uvloop reads all
of them at once, into memory that stays the connection's for as long as it is open."""
READ_BUFFER = 32 * 1024
"""Bytes of a body that wait to be read; twice as many may. aiohttp's own limit is for uploads."""
LINGER_S = 1.0
LOOK_S = 1.0
"""How long to read on where an answer came before the end of the request, so that the client can read it."""
BACKLOG = 1024
"""Connections that wait to be accepted: after a restart all pods come at once."""

Missing = Callable[[], Sequence[str]]


class Server:
    """The operator's HTTP servers.

    Args:
        metrics: What `/metrics` shows.
        missing: Names what the replica still needs before it may serve; `/readyz` answers 503 until nothing is.
        stuck: Names what is broken for good; `/healthz` answers 503 while there is anything.
    """

    def __init__(self, metrics: Metrics, missing: Missing, stuck: Missing = tuple) -> None:
        self._metrics = metrics
        self._missing = missing
        self._stuck = stuck
        self._runners: list[web.AppRunner] = []
        self._listening: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start_plain(self, port: int, host: str | None = None) -> int:
        """Serve `/metrics`, `/healthz` and `/readyz`; return the port (0 asks for a free one).

        Raises:
            OSError: The port is taken.
        """
        routes = [
            web.get("/metrics", self._show_metrics),
            web.get("/healthz", _probe(self._stuck)),
            web.get("/readyz", _probe(self._missing)),
        ]
        return await self._start(routes, host, port, None)

    async def start_secure(
        self, routes: Iterable[web.AbstractRouteDef], tls: ssl.SSLContext, port: int, host: str | None = None
    ) -> int:
        """Serve routes over TLS; a certificate that is loaded into the context later is used from then on.

        Raises:
            OSError: The port is taken.
        """
        return await self._start(routes, host, port, tls)

    async def close(self) -> None:
        """Stop listening, then give open answers two seconds."""
        for server in self._listening:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._runners:
            await self._runners.pop().cleanup()

    async def _start(
        self, routes: Iterable[web.AbstractRouteDef], host: str | None, port: int, tls: ssl.SSLContext | None
    ) -> int:
        newcomers = Newcomers()
        app = web.Application(client_max_size=MAX_BODY, middlewares=[newcomers.middleware])
        app.add_routes(routes)
        # handler_cancellation: a pod that goes away must end its watch here too.
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=CLOSE_S,
            lingering_time=LINGER_S,
            read_bufsize=READ_BUFFER,
            handler_cancellation=True,
        )
        await runner.setup()
        self._runners.append(runner)
        assert runner.server is not None, "set up"
        if tls is not None:
            sslproto.SSLProtocol.max_size = TLS_BUFFER
            memory.map_large_pieces()
        # Not by aiohttp's TCPSite, which knows no limit for the handshake.
        server = await asyncio.get_running_loop().create_server(
            runner.server,
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
            backlog=BACKLOG,
            reuse_address=True,
            start_serving=False,
        )
        for sock in server.sockets:
            # Connections have what their port has as they come in.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        await server.start_serving()
        self._listening.append(server)
        self._tasks.append(asyncio.create_task(_look_after(runner.server, newcomers), name="connections"))
        taken: int = server.sockets[0].getsockname()[1]
        return taken

    async def _show_metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})


async def _look_after(server: web.Server, newcomers: Newcomers) -> NoReturn:
    """Look at the connections of a server, until cancelled."""
    trimming = memory.Trimming(memory.trim)
    while True:
        await asyncio.sleep(LOOK_S)
        connections = server.connections  # a list, made anew each time it is asked for
        newcomers.look(connections, time.monotonic())
        trimming.look(len(connections))


def _probe(reasons: Missing) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_request: web.Request) -> web.StreamResponse:
        found = reasons()
        return web.Response(text="\n".join(found) or "ok", status=503 if found else 200)

    return answer
