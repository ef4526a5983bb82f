"""The two ports: HTTPS for the API server and for pods, plain HTTP for probes and Prometheus."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from ebbtide_operator.metrics import Metrics

MAX_BODY = 4 * 2**20
"""An AdmissionReview holds a whole pod, and etcd lets no object grow past 1.5 MiB."""
KEEP_ALIVE_S = 120.0
"""Longer than the 90 s of the API server's client, so that never both use and close a connection at once."""
CLOSE_S = 2.0
"""How long open answers may take once the server closes; watches of pods would not end by themselves."""

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
        while self._runners:
            await self._runners.pop().cleanup()

    async def _start(
        self, routes: Iterable[web.AbstractRouteDef], host: str | None, port: int, tls: ssl.SSLContext | None
    ) -> int:
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes(routes)
        # handler_cancellation: a pod that goes away must end its watch here too.
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=CLOSE_S,
            handler_cancellation=True,
        )
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, host, port, ssl_context=tls, reuse_address=True).start()
        taken: int = runner.addresses[0][1]
        return taken

    async def _show_metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})


def _probe(reasons: Missing) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_request: web.Request) -> web.StreamResponse:
        found = reasons()
        return web.Response(text="\n".join(found) or "ok", status=503 if found else 200)

    return answer
