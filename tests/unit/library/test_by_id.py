"""Heartbeats, and what can be done to one unit of work: take it in, cancel it, let go of it."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebbtide
from ebbtide.tasks.heartbeats import MISSED_BEATS, missed
from tests.unit.library.runtimes import a_runtime, until


def the_only(runtime: ebbtide.Runtime) -> dict[str, Any]:
    (shown,) = runtime.tasks()
    return dict(shown)


@given(st.floats(0.001, 1e6), st.floats(0, 1e9))
def test_a_heartbeat_is_missed_after_three_intervals(heartbeat_s: float, beat_age_s: float) -> None:
    assert missed(heartbeat_s, beat_age_s) == (beat_age_s > MISSED_BEATS * heartbeat_s)
    assert not missed(None, beat_age_s)


async def test_a_task_is_stale_while_its_heartbeats_are_missing_and_not_after_one() -> None:
    async with a_runtime() as runtime:
        beat = asyncio.Event()

        async def consume() -> None:
            await beat.wait()
            ebbtide.heartbeat()
            await asyncio.sleep(3600)

        consumers = runtime.scope("consumers", heartbeat_s=0.01)
        consumers.spawn(consume())
        await until(lambda: the_only(runtime)["state"] == "stale")
        silent_s = the_only(runtime)["heartbeat_age_s"]
        beat.set()
        # A slow machine may be late with the look after it: what counts is that the age began anew.
        await until(lambda: the_only(runtime)["heartbeat_age_s"] < silent_s)
        consumers.cancel("enough seen")


async def test_a_thread_and_a_helper_task_beat_for_the_work_they_belong_to() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("work")
        done = threading.Event()
        begun = threading.Event()

        def work() -> None:
            ebbtide.heartbeat()
            begun.set()
            done.wait(10)

        future = scope.thread(work)
        begun.wait(10)
        assert the_only(runtime)["heartbeat_age_s"] is not None
        done.set()
        await asyncio.wrap_future(future)

        async def helped() -> None:
            async def help_out() -> None:
                ebbtide.heartbeat()

            await asyncio.create_task(help_out())
            assert the_only(runtime)["heartbeat_age_s"] is not None

        await scope.spawn(helped())


async def test_a_heartbeat_in_a_block_is_one_of_everything_around_it() -> None:
    async with a_runtime() as runtime:
        pumps, steps = runtime.scope("pumps", heartbeat_s=30), runtime.scope("steps")

        async def pump() -> None:
            with steps.track("outer"):
                await beat.wait()
                with steps.track("inner"):
                    await asyncio.to_thread(ebbtide.heartbeat)
            await asyncio.Event().wait()

        beat = asyncio.Event()
        pumps.spawn(pump(), name="pump")
        neighbour = pumps.spawn(asyncio.Event().wait(), name="neighbour")
        await asyncio.sleep(0)
        beats = runtime._registry.beats
        assert not beats
        beat.set()
        await until(lambda: len(beats) == 3)
        # The blocks are left: what they said stays said for the task.
        await until(lambda: [shown["kind"] for shown in runtime.tasks()] == ["task", "task"])
        (task, other) = runtime.tasks()
        assert task["id"] in beats
        assert other["id"] not in beats
        assert not neighbour.done()
        pumps.cancel("enough seen")


async def test_without_a_promise_there_are_no_heartbeats_to_miss_and_outside_of_work_they_are_nobodys() -> None:
    async with a_runtime() as runtime:
        ebbtide.heartbeat()
        scope = runtime.scope("orders")
        scope.spawn(asyncio.sleep(3600))
        assert (the_only(runtime)["state"], the_only(runtime)["heartbeat_age_s"]) == ("running", None)
        scope.cancel("enough seen")


async def test_what_has_ended_keeps_no_heartbeat() -> None:
    async with a_runtime() as runtime:

        async def beat() -> None:
            ebbtide.heartbeat()

        await runtime.scope("orders").spawn(beat())
        assert runtime._registry.beats
        runtime._registry.forget_ended()
        assert not runtime._registry.beats


async def test_heartbeats_are_inherited_and_one_name_has_one_interval() -> None:
    async with a_runtime() as runtime:
        outer = runtime.scope("outer", heartbeat_s=30)
        assert outer.scope("inner").heartbeat_s == 30
        assert outer.scope("own", heartbeat_s=5).heartbeat_s == 5
        with pytest.raises(ValueError, match=r"scope outer: heartbeat_s is 30 where it was made, and 4 here"):
            runtime.scope("outer", heartbeat_s=4)
        with pytest.raises(ValueError, match=r"scope bad: heartbeat_s must be above 0"):
            runtime.scope("bad", heartbeat_s=0)


async def test_one_task_is_cancelled_by_its_id_and_its_neighbour_goes_on() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        first, second = scope.spawn(asyncio.sleep(3600)), scope.spawn(asyncio.sleep(3600))
        number = runtime.tasks()[0]["id"]
        # From another thread, as the admin server does.
        assert await asyncio.to_thread(runtime.cancel, number, "by hand")
        with pytest.raises(asyncio.CancelledError, match="by hand"):
            await first
        assert not second.done()
        assert not runtime.cancel(number)
        scope.cancel("enough seen")


async def test_a_thread_cannot_be_cancelled_by_its_id() -> None:
    async with a_runtime() as runtime:
        done = threading.Event()
        future = runtime.scope("reports").thread(done.wait, 10)
        assert not runtime.cancel(the_only(runtime)["id"])
        done.set()
        await asyncio.wrap_future(future)


async def test_released_work_goes_on_and_no_drain_waits_for_it(caplog: Any) -> None:
    scope_task: asyncio.Task[Any]
    async with a_runtime() as runtime:
        scope_task = runtime.scope("reports").spawn(asyncio.sleep(3600))
        number = the_only(runtime)["id"]
        with caplog.at_level(logging.ERROR, "ebbtide"):
            assert runtime.release(number, "not worth the wait")
        assert not runtime.release(number)
        assert the_only(runtime)["state"] == "abandoned"
        assert "not worth the wait" in caplog.text
    assert not scope_task.done()
    assert runtime.drain_view()["tally"] == {"abandoned": 1}
    scope_task.cancel()


async def test_an_adopted_task_is_waited_for_and_counted_by_how_it_ends(caplog: Any) -> None:
    async def crash() -> None:
        raise ValueError("no such order")

    async with a_runtime() as runtime:
        orders = runtime.scope("orders")
        task = asyncio.create_task(crash(), name="theirs")
        number = orders.adopt(task, meta={"customer": 7})
        assert (the_only(runtime)["id"], the_only(runtime)["name"]) == (number, "theirs")
        with caplog.at_level(logging.ERROR, "ebbtide"):
            await until(lambda: runtime.tasks_left == 0)
        assert "theirs of orders crashed: {'customer': 7}" in caplog.text
        slow = asyncio.create_task(asyncio.sleep(0.01))
        orders.adopt(slow)
    assert slow.done()
    assert runtime.drain_view()["tally"] == {"finished": 1, "failed": 1}


async def test_a_task_is_not_taken_in_twice_nor_after_its_end() -> None:
    async with a_runtime() as runtime:
        orders = runtime.scope("orders")
        task = orders.spawn(asyncio.sleep(0), name="mine")
        with pytest.raises(ValueError, match="task: mine of orders was started by a scope already"):
            orders.adopt(task)
        await task
        with pytest.raises(ValueError, match="has ended"):
            orders.adopt(await ended())
        assert runtime.tasks_left == 0


async def ended() -> asyncio.Task[None]:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    return task


async def test_what_ended_a_turn_ago_is_neither_cancelled_nor_released() -> None:
    async with a_runtime() as runtime:
        seen: list[bool] = []

        def look(_: object) -> None:
            seen.extend([runtime.cancel(number), runtime.release(number)])

        # Asked first, so called first: the entry is still in the registry then.
        theirs = asyncio.create_task(asyncio.sleep(0))
        theirs.add_done_callback(look)
        number = runtime.scope("orders").adopt(theirs)
        await until(lambda: runtime.tasks_left == 0)
        assert seen == [False, False]
    assert runtime.drain_view()["tally"] == {"finished": 1}
