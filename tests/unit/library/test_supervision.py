"""Supervised work between two runs: what the last one was asked and counted as is not the next one's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ebbtide.protocol import PodState
from ebbtide.tasks.restarts import Restart
from tests.unit.library.runtimes import a_runtime, until

AT_ONCE = Restart(limit=None, first_s=0.0)


class Slow:
    """A function whose first run outlives its time limit and its grace, and whose second one waits to be let go."""

    def __init__(self) -> None:
        self.end_first, self.end_second = asyncio.Event(), asyncio.Event()
        self.runs = 0

    async def __call__(self) -> None:
        self.runs += 1
        if self.runs == 1:
            try:
                await asyncio.Event().wait()
            finally:
                await self.end_first.wait()
        await self.end_second.wait()


async def test_a_drain_waits_for_the_run_after_one_that_was_abandoned() -> None:
    async with a_runtime(cancel_grace_s=0.01) as runtime:
        slow = Slow()
        scope = runtime.scope("consumers")

        async def consume() -> str:
            await slow()
            return await scope.spawn(asyncio.sleep(0, "its child is done"))

        # Of each run, so the second one has to be quicker than it.
        task = scope.supervise(consume, restart=AT_ONCE, timeout_s=2.0)
        await until(lambda: runtime._registry.abandoned)
        slow.end_first.set()
        await until(lambda: slow.runs == 2)
        assert runtime.tasks()[0]["state"] == "running"
        assert not runtime._registry.odd
        # Its first run's time-out is counted; the end of another run is one of its own.
        assert not scope.gate.given_up
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        assert runtime.state is PodState.DRAINING
        slow.end_second.set()
        assert await task == "its child is done"
        await until(lambda: runtime.state is PodState.DRAINED)
        assert runtime.drain_view()["tally"] == {"abandoned": 1, "finished": 2}


async def test_no_drain_waits_for_released_work_however_often_it_is_started_again() -> None:
    async with a_runtime() as runtime:
        crash, go_on = asyncio.Event(), asyncio.Event()
        runs = 0

        async def consume() -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                await crash.wait()
                raise ValueError("boom")
            await go_on.wait()

        task = runtime.scope("consumers").supervise(consume, restart=AT_ONCE)
        await until(lambda: runs == 1)
        assert runtime.release(runtime.tasks()[0]["id"])
        crash.set()
        await until(lambda: runs == 2)
        assert runtime.tasks()[0]["state"] == "abandoned"
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.DRAINED)
        go_on.set()
        await task
        registry = runtime._registry
        assert not registry.abandoned
        assert not registry.released
        assert runtime.drain_view()["tally"] == {"abandoned": 1}


async def crashes_in_its_cleanup() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionError("while cleaning up") from None


async def swallows() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


@pytest.mark.parametrize("function", [crashes_in_its_cleanup, swallows])
async def test_whatever_a_task_makes_of_its_time_limit_nobody_is_left_to_want_its_end(
    function: Callable[[], Awaitable[None]],
) -> None:
    cancels: list[int] = []

    async def work() -> None:
        try:
            await function()
        finally:
            asyncio.get_running_loop().call_soon(look)

    def look() -> None:
        cancels.append(task.cancelling())

    async with a_runtime() as runtime:
        task = runtime.scope("orders").spawn(work(), timeout_s=0.005)
        await asyncio.wait({task})
        await until(lambda: cancels)
        assert cancels == [0]
        assert not task.cancelled()


async def test_a_run_that_crashes_at_its_time_limit_leaves_the_next_ones_their_restarts() -> None:
    runs = 0

    async def consume() -> None:
        nonlocal runs
        runs += 1
        await (crashes_in_its_cleanup() if runs == 1 else asyncio.Event().wait())

    async with a_runtime() as runtime:
        scope = runtime.scope("consumers")
        task = scope.supervise(consume, restart=AT_ONCE, timeout_s=0.005)
        await until(lambda: task.done() or runs == 4)
        assert not task.done()
        scope.cancel("enough seen")
        await asyncio.wait({task})


@pytest.mark.parametrize("timeout_s", [None, 60.0])
async def test_what_was_cancelled_and_crashes_in_its_cleanup_is_not_started_again(timeout_s: float | None) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("consumers")
        task = scope.supervise(crashes_in_its_cleanup, restart=AT_ONCE, timeout_s=timeout_s)
        await asyncio.sleep(0)
        scope.cancel("the owner ends")
        await until(lambda: task.done() or runtime.sample().restarts)
        with pytest.raises(ConnectionError):
            task.result()
        assert runtime.sample().restarts == 0
        assert runtime.drain_view()["tally"] == {"failed": 1}


async def test_a_cancel_in_the_midst_of_a_time_out_ends_supervision() -> None:
    async with a_runtime(cancel_grace_s=0.01) as runtime:
        scope = runtime.scope("consumers")
        cleaning = asyncio.Event()

        async def slow_to_crash() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    raise ConnectionError("while cleaning up")

        task = scope.supervise(slow_to_crash, restart=AT_ONCE, timeout_s=0.005)
        await cleaning.wait()
        await until(lambda: scope.cancel("its grace is over"))
        await until(lambda: task.done() or runtime.sample().restarts)
        with pytest.raises(ConnectionError):
            task.result()
        assert runtime.sample().restarts == 0


async def test_a_crash_long_after_a_cancel_that_was_swallowed_is_a_crash_like_any_other() -> None:
    async with a_runtime() as runtime:
        waits, swallowed, crash = asyncio.Event(), asyncio.Event(), asyncio.Event()
        runs = 0

        async def consume() -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                waits.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    swallowed.set()
                await crash.wait()
                raise ValueError("boom")

        scope = runtime.scope("consumers")
        task = scope.supervise(consume, restart=AT_ONCE)
        await waits.wait()
        scope.cancel("test")
        await swallowed.wait()
        crash.set()
        await asyncio.wait({task})
        assert runs == 2
