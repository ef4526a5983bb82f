"""Crashes, restarts, time limits and protection: what one task does to others, and what is done to it."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebbtide
from ebbtide.protocol import PodState
from ebbtide.tasks.protection import is_protected
from ebbtide.tasks.restarts import Restart, Restarts
from tests.unit.library.runtimes import a_runtime, until


async def crash() -> None:
    raise ValueError("boom")


def messages(caplog: Any, part: str) -> list[str]:
    return [message for record in caplog.records if part in (message := record.getMessage())]


async def test_a_crash_that_is_isolated_leaves_the_neighbours_alone() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        neighbour = scope.spawn(asyncio.sleep(0.01, "fine"))
        await asyncio.wait({scope.spawn(crash())})
        assert await neighbour == "fine"
        assert scope.failure is None


async def test_a_crash_that_propagates_ends_its_scope_with_cleanup_and_nothing_else(caplog: Any) -> None:
    cleaned: list[str] = []

    async def careful(name: str) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    async with a_runtime() as runtime:
        pair = runtime.scope("pair", on_crash=ebbtide.OnCrash.PROPAGATE)
        others = runtime.scope("others")
        spared = others.spawn(asyncio.sleep(3600))
        ended = [pair.spawn(careful("one")), pair.scope("inner").spawn(careful("two"))]
        await asyncio.sleep(0)
        pair.spawn(crash(), name="culprit")
        await asyncio.wait(ended)
        assert all(task.cancelled() for task in ended)
        assert sorted(cleaned) == ["one", "two"]
        assert not spared.done()
        assert isinstance(pair.failure, ValueError)
        assert len(messages(caplog, "crashed: {}")) == 1
        assert runtime.drain_view()["tally"] == {"failed": 1, "cancelled": 2}
        others.cancel("test")


async def test_a_crash_goes_up_as_far_as_scopes_let_it() -> None:
    async with a_runtime() as runtime:
        top = runtime.scope("top")
        middle = top.scope("middle", on_crash=ebbtide.OnCrash.PROPAGATE)
        inner = middle.scope("inner", on_crash=ebbtide.OnCrash.PROPAGATE)
        spared, ended = top.spawn(asyncio.sleep(3600)), middle.spawn(asyncio.sleep(3600))
        inner.spawn(crash())
        await asyncio.wait({ended})
        assert ended.cancelled()
        assert not spared.done()
        assert (top.failure, type(middle.failure)) == (None, ValueError)
        top.cancel("test")


async def test_a_crash_of_an_inner_scope_that_isolates_stays_there() -> None:
    async with a_runtime() as runtime:
        outer = runtime.scope("outer", on_crash=ebbtide.OnCrash.PROPAGATE)
        spared = outer.spawn(asyncio.sleep(0.01, "fine"))
        await asyncio.wait({outer.scope("inner").spawn(crash())})
        assert await spared == "fine"


async def test_a_crash_in_a_thread_is_logged_once_counted_and_propagates(caplog: Any) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports", on_crash=ebbtide.OnCrash.PROPAGATE)
        ended = scope.spawn(asyncio.sleep(3600))
        await asyncio.sleep(0)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(scope.thread(lambda: 1 // 0))
        await asyncio.wait({ended})
        assert ended.cancelled()
        assert len(messages(caplog, "ebbtide: thread reports-")) == 1


async def test_what_crashes_is_started_again_until_it_returns(caplog: Any) -> None:
    runs = 0

    async def consume() -> str:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise ValueError("boom")
        return "done"

    async with a_runtime() as runtime:
        scope = runtime.scope("consumers")
        task = scope.supervise(consume, restart=Restart(first_s=0.0), name="consumer", meta={"topic": "a"})
        assert await task == "done"
        assert runs == 4
        assert len(messages(caplog, "task consumer of consumers crashed and is started again")) == 3
        assert runtime.sample().restarts == 3
        await until(lambda: runtime.tasks_left == 0)
        assert runtime.drain_view()["tally"] == {"finished": 1}


async def test_restarts_have_a_limit_and_the_last_crash_is_the_tasks(caplog: Any) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("consumers", on_crash=ebbtide.OnCrash.PROPAGATE)
        neighbour = scope.spawn(asyncio.sleep(3600))
        with pytest.raises(ValueError, match="boom"):
            await scope.supervise(crash, restart=Restart(limit=2, first_s=0.0))
        await asyncio.wait({neighbour})
        assert neighbour.cancelled()
        assert len(messages(caplog, "crashed and is started again")) == 2
        assert len(messages(caplog, "crashed: {}")) == 1


async def test_a_run_that_times_out_is_one_that_crashed() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("consumers", timeout_s=0.005)
        with pytest.raises(ebbtide.TimedOut):
            await scope.supervise(lambda: asyncio.sleep(3600), restart=Restart(limit=2, first_s=0.0))
        assert runtime.sample().restarts == 2
        await until(lambda: runtime.tasks_left == 0)
        assert runtime.drain_view()["tally"] == {"timed_out": 1}


async def test_a_drain_ends_the_pause_before_a_restart() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("consumers")
        task = scope.supervise(crash, restart=Restart(first_s=3600.0, most_s=3600.0))
        await until(lambda: runtime.sample().restarts == 1)
        runtime.drain("test", leave=False)
        await asyncio.wait({task})
        assert task.cancelled()
        await until(lambda: runtime.state is PodState.DRAINED)


async def test_supervised_work_ends_when_it_is_cancelled() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("consumers")
        task = scope.supervise(lambda: asyncio.sleep(3600))
        await asyncio.sleep(0)
        scope.cancel("test")
        await asyncio.wait({task})
        assert task.cancelled()


@given(
    st.lists(st.floats(0, 100), max_size=60),
    st.integers(0, 6) | st.none(),
    st.floats(0.1, 5),
    st.floats(1, 1e6),
    st.floats(0, 1),
)
def test_no_stretch_of_time_has_more_restarts_than_the_limit(
    gaps: list[float], limit: int | None, first_s: float, factor: float, chance: float
) -> None:
    policy = Restart(limit=limit, within_s=60.0, first_s=first_s, factor=factor, most_s=30.0)
    restarts, now, done = Restarts(policy), 1000.0, []
    for gap in gaps:
        now += gap
        pause_s = restarts.crashed(now, chance)
        if pause_s is None:
            assert limit is not None
            break
        assert min(first_s, 30.0) <= pause_s <= 30.0 * 1.25
        done.append(now)
    if limit is not None:
        for start in done:
            assert sum(start <= at <= start + 60.0 for at in done) <= limit


def test_pauses_get_longer_and_start_anew_after_a_quiet_time() -> None:
    restarts = Restarts(Restart(limit=None, within_s=60.0, first_s=1.0, most_s=5.0))
    assert [restarts.crashed(1000.0 + at) for at in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert restarts.crashed(1100.0) == 1.0


@pytest.mark.parametrize("fields", [{"limit": -1}, {"first_s": -1.0}, {"factor": 0.5}, {"within_s": float("nan")}])
def test_a_wrong_restart_policy_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Restart(**fields)


async def test_a_task_past_its_time_limit_is_cancelled_once_and_its_cleanup_is_waited_for() -> None:
    cancels = 0

    async def slow_to_end() -> None:
        nonlocal cancels
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancels += 1
            await asyncio.sleep(0.02)
            raise

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(slow_to_end(), timeout_s=0.005)
        await until(lambda: cancels)
        scope.cancel("somebody is in a hurry")
        with pytest.raises(ebbtide.TimedOut):
            await task
        assert cancels == 1


async def test_a_task_that_swallows_its_time_limit_is_named_with_its_place_and_holds_no_drain(caplog: Any) -> None:
    give_up = asyncio.Event()

    async def deaf() -> None:
        with scope.track("block"):
            while not give_up.is_set():
                try:
                    await give_up.wait()
                except asyncio.CancelledError:
                    continue

    async with a_runtime(cancel_grace_s=0.02) as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(deaf(), name="deaf", timeout_s=0.005)
        await until(lambda: messages(caplog, "abandoned"))
        (named,) = messages(caplog, "abandoned")
        assert "abandoned 2, did not end within 0.02 s after the time limit: deaf of orders at " in named
        assert "test_isolation.py" in named
        assert runtime.drain_view()["tally"] == {"abandoned": 2}
        assert {shown["state"] for shown in runtime.tasks()} == {"abandoned"}
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.DRAINED)
        assert task.cancelling() == 1, "it was named, and not cancelled over and over"
        give_up.set()
        await task
        await until(lambda: runtime.tasks_left == 0)
        assert runtime.drain_view()["tally"] == {"abandoned": 2}, "it is counted once"
        assert not runtime._registry.abandoned


async def test_who_swallows_the_cancel_and_returns_in_time_has_finished_and_is_named(caplog: Any) -> None:
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return "done all the same"

    async with a_runtime() as runtime:
        task = runtime.scope("orders").spawn(stubborn(), name="stubborn", timeout_s=0.005)
        assert await task == "done all the same"
        assert len(messages(caplog, "task stubborn swallowed the cancel at its time limit of 0.005 s")) == 1
        await until(lambda: runtime.tasks_left == 0)
        assert runtime.drain_view()["tally"] == {"finished": 1}


async def test_a_time_limit_and_a_cancel_of_somebody_else_at_once_are_a_cancel() -> None:
    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            await go_on.wait()

    cleaning, go_on = asyncio.Event(), asyncio.Event()
    async with a_runtime() as runtime:
        task = runtime.scope("orders").spawn(slow_to_end(), timeout_s=0.005)
        await cleaning.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


async def test_time_limits_live_with_those_of_asyncio() -> None:
    async def inner() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(3600)
        except TimeoutError:
            return "inner"
        return "none"

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        assert await scope.spawn(inner(), timeout_s=30) == "inner"

        async def outer() -> None:
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(3600))

        with pytest.raises(ebbtide.TimedOut):
            await scope.spawn(outer(), timeout_s=0.005)


async def test_abandoned_work_keeps_its_place_and_starts_nothing_during_a_drain() -> None:
    give_up = asyncio.Event()
    refused: list[str] = []

    async def deaf() -> None:
        while not give_up.is_set():
            try:
                await give_up.wait()
            except asyncio.CancelledError:
                continue
        try:
            scope.spawn(asyncio.sleep(0))
        except ebbtide.Refused as error:
            refused.append(error.why)

    async with a_runtime(cancel_grace_s=0.01) as runtime:
        scope = runtime.scope("orders", limits=ebbtide.Limits(max_tasks=1))
        task = scope.spawn(deaf(), timeout_s=0.005)
        await until(lambda: runtime._registry.abandoned)
        with pytest.raises(ebbtide.Refused, match="limit"):
            scope.spawn(asyncio.sleep(0))
        runtime.drain("test", leave=False)
        give_up.set()
        await task
        assert refused == ["draining"]


async def test_a_protected_block_ends_before_the_cancel_comes() -> None:
    steps: list[str] = []

    async def pay() -> None:
        with ebbtide.protect(30):
            steps.append("charge")
            charging.set()
            await charged.wait()
            steps.append("note")
        await asyncio.sleep(3600)

    charging, charged = asyncio.Event(), asyncio.Event()
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(pay())
        await charging.wait()
        scope.cancel("test")
        await asyncio.sleep(0)
        assert task.cancelling() == 0
        charged.set()
        await asyncio.wait({task})
        assert task.cancelled()
        assert steps == ["charge", "note"]


@pytest.mark.parametrize(("seconds", "grace_s"), [(0.01, 30.0), (30.0, 0.02)])
async def test_protection_is_over_after_its_time_or_half_the_grace(seconds: float, grace_s: float) -> None:
    async def stuck() -> None:
        with ebbtide.protect(seconds):
            begun.set()
            await asyncio.sleep(3600)

    begun = asyncio.Event()
    async with a_runtime(cancel_grace_s=grace_s) as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(stuck())
        await begun.wait()
        scope.cancel("test")
        await asyncio.wait({task})
        assert task.cancelled()


async def test_protection_holds_against_time_limits_and_the_drain_within_their_grace() -> None:
    async def stuck() -> None:
        with ebbtide.protect(30):
            await asyncio.sleep(3600)

    async with a_runtime(drain_timeout_s=0.01, cancel_grace_s=0.1) as runtime:
        limited = runtime.scope("orders").spawn(stuck(), timeout_s=0.005)
        with pytest.raises(ebbtide.TimedOut):
            await limited
        drained = runtime.scope("orders").spawn(stuck())
        await asyncio.sleep(0)
        runtime.drain("test")
        await asyncio.wait({drained})
        assert drained.cancelled()
        await runtime.wait_exit()
        assert runtime.drain_view()["tally"] == {"timed_out": 1, "cancelled": 1}


async def test_protection_nests_and_the_outer_one_goes_on_holding() -> None:
    async def work() -> None:
        with ebbtide.protect(30):
            with ebbtide.protect(30):
                begun.set()
                await go_on.wait()
            await asyncio.sleep(0)
            reached.append("after the inner one")
        await asyncio.sleep(3600)

    begun, go_on = asyncio.Event(), asyncio.Event()
    reached: list[str] = []
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(work())
        await begun.wait()
        scope.cancel("test")
        go_on.set()
        await asyncio.wait({task})
        assert task.cancelled()
        assert reached == ["after the inner one"]


async def test_protections_that_overlap_hold_a_cancel_until_the_last_one_ends() -> None:
    async def lines() -> AsyncGenerator[str, None]:
        with ebbtide.protect(30):
            yield "line"

    async def inner_ends_last() -> None:
        with ebbtide.protect(30):
            reading = lines()
            await anext(reading)
            begun.set()
            await go_on.wait()
        await asyncio.sleep(0)
        reached.append("the end of the inner one")
        await reading.aclose()
        await asyncio.sleep(3600)

    async def outer_ends_last() -> None:
        reading = lines()
        await anext(reading)
        with ebbtide.protect(30):
            await reading.aclose()
            begun.set()
            await go_on.wait()
            reached.append("the end of the outer one")
        await asyncio.sleep(3600)

    reached: list[str] = []
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        for work in (inner_ends_last, outer_ends_last):
            begun, go_on = asyncio.Event(), asyncio.Event()
            task = scope.spawn(work())
            await begun.wait()
            scope.cancel("test")
            await asyncio.sleep(0)
            go_on.set()
            await asyncio.wait({task})
            assert task.cancelled()
            assert not is_protected(task)
    assert reached == ["the end of the inner one", "the end of the outer one"]


def test_protection_does_nothing_where_nothing_can_cancel() -> None:
    with ebbtide.protect(5):
        pass
    with pytest.raises(ValueError, match="seconds"):
        ebbtide.protect(-1)


async def test_threads_that_are_left_behind_are_named_with_their_place(caplog: Any) -> None:
    release = threading.Event()
    with caplog.at_level(logging.ERROR, "ebbtide"):
        async with a_runtime(drain_timeout_s=0.01, cancel_grace_s=0.01) as runtime:
            runtime.scope("reports").thread(lambda: release.wait(10))
            runtime.drain("test")
            await runtime.wait_exit()
            (named,) = messages(caplog, "abandoned")
            assert "test_isolation.py" in named
            release.set()
            await until(lambda: runtime.tasks_left == 0)
