"""The same on aiohttp's own server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from aiohttp import web

import ebbtide
from tests.contract.servers.service import a_runtime, handle

REQUESTS: web.AppKey[ebbtide.Scope] = web.AppKey("requests", ebbtide.Scope)


async def ebb(app: web.Application) -> AsyncIterator[None]:
    async with a_runtime() as runtime:
        app[REQUESTS] = runtime.scope("requests")
        yield


async def serve(request: web.Request) -> web.Response:
    try:
        await handle(request.app[REQUESTS], request.query["name"], float(request.query["seconds"]))
    except ebbtide.Refused as refused:
        return web.Response(status=503, headers={"Retry-After": f"{refused.retry_after_s:.0f}"})
    except asyncio.CancelledError:
        return web.Response(status=503)  # cleaned up; who asked is told to try elsewhere
    return web.Response()


if __name__ == "__main__":
    app = web.Application()
    app.cleanup_ctx.append(ebb)
    app.router.add_get("/", serve)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_timeout=float(sys.argv[2]), print=None)
