"""Drains for ASGI applications: Starlette, FastAPI, Quart, Litestar, or a plain function. See docs/library/asgi.md."""

from __future__ import annotations

from ebbtide.asgi.middleware import HEALTH_PATHS, DrainMiddleware
from ebbtide.asgi.soft import OnDrain

__all__ = ["HEALTH_PATHS", "DrainMiddleware", "OnDrain"]
