"""The event loop that the operator runs on: uvloop, or asyncio's own where that cannot be had."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine as `asyncio.run` does, on the fastest loop at hand; return what it returns."""
    with asyncio.Runner(loop_factory=fastest()) as runner:
        return runner.run(main)


def fastest() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes an event loop; None: asyncio's own, which is logged. docs/decisions/0020 says why."""
    try:
        # Late: it has no wheels for some platforms, and what else this package has runs without.
        import uvloop
    except ImportError as error:
        logger.warning("operator.without_uvloop", extra={"error": str(error)})
        return None
    return uvloop.new_event_loop
