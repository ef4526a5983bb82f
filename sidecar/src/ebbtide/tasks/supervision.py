"""Work that is started again when it crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

from ebbtide.tasks.entries import log_crash
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.restarts import Restart, Restarts
from ebbtide.tasks.timelimit import TimeLimit

T = TypeVar("T")


async def supervised(
    registry: Registry,
    number: int,
    function: Callable[[], Coroutine[Any, Any, T]],
    policy: Restart,
    timeout_s: float | None,
) -> T:
    """Run a coroutine function until it returns, or crashes once more than the policy allows.

    Args:
        registry: Where the entry is that runs this.
        number: Of the entry.
        function: Called for each run.
        policy: How often, and after which pauses.
        timeout_s: Limit of each run, in seconds; None: none.
    """
    import random

    restarts = Restarts(policy)
    while True:
        try:
            running = function()
            return await (running if timeout_s is None else TimeLimit(registry, number, timeout_s).run(running))
        except Exception as error:
            pause_s = restarts.crashed(monotonic(), random.random())  # noqa: S311 (no secret)
            item = registry.live.get(number)
            if pause_s is None or item is None or not registry.intake_open or _is_to_end(error):
                raise
            log_crash(item, error, f" and is started again in {pause_s:.3g} s")
            registry.begin_again(item)
        again_at = monotonic() + pause_s
        while (left_s := again_at - monotonic()) > 0 and registry.intake_open:
            await registry.gate.sleepers.join(left_s)
        if not registry.intake_open:
            raise asyncio.CancelledError("the process drains: what crashed is not started again")


def _is_to_end(error: BaseException) -> bool:
    """Say whether somebody cancelled the task that runs here, and it crashed with `error` in its cleanup."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return False
    # A cancel that was swallowed before leaves its count behind, but is no part of a later crash.
    before = error.__context__
    while before is not None and not isinstance(before, asyncio.CancelledError):
        before = before.__context__
    return before is not None
