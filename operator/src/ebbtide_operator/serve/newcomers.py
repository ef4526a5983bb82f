"""Connections that have asked for nothing yet: few, and not for long."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

MOST = 500
PATIENCE_S = 10.0
"""How long a client may take to send the head of its first request."""
GRACE_S = 2.0
"""How long it may take even where there is no room: after a restart all pods come at once, and all are honest."""

logger = logging.getLogger(__name__)


class Newcomers:
    """Close connections that only take up room.

    A client sends its first request at once. Whoever opens a connection and is silent, or dribbles, is closed after
    `PATIENCE_S`; where there are more than `MOST` of them, those that came first go after `GRACE_S`, so that a flood
    pushes out itself and nobody who speaks.
    """

    def __init__(self) -> None:
        self._asked: set[object] = set()
        """Connections that sent a request, until they are gone."""
        self._since: dict[web.RequestHandler, float] = {}

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Take note that somebody asks."""
        self._asked.add(request.protocol)
        return await handler(request)

    def look(self, connections: list[web.RequestHandler], now: float) -> None:
        """Close whom there is no room or no patience for; `connections` are those open now, the oldest first."""
        self._asked.intersection_update(connections)
        since = self._since
        self._since = {one: since.get(one, now) for one in connections if one not in self._asked}
        surplus = len(self._since) - MOST
        closed = [
            one
            for number, (one, came_at) in enumerate(self._since.items())
            if now - came_at >= (GRACE_S if number < surplus else PATIENCE_S)
        ]
        for one in closed:
            one.force_close()
        if closed:
            logger.info(
                "server.newcomers_closed", extra={"closed": len(closed), "left": len(self._since) - len(closed)}
            )
