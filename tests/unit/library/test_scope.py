"""Scopes: what is counted, what is refused, what is cancelled, and what a crash does."""

import asyncio
import contextvars
import gc
import logging
import sys
import threading
import weakref
from typing import Any

import pytest

import ebbtide
from tests.unit.library.runtimes import a_runtime, until, without_collector


async def test_live_work_may_still_start_what_it_needs() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        draining = asyncio.Event()

        async def parent() -> str:
            await draining.wait()
            return await scope.spawn(child())

        async def child() -> str:
            with scope.track("grandchild"):
                return "done"

        task = scope.spawn(parent())
        await asyncio.sleep(0)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        draining.set()
        assert await task == "done"
        assert runtime.drain_view()["late_arrivals"] == 2


async def test_a_crash_is_logged_once_with_its_metadata_and_harms_no_neighbour(caplog: Any) -> None:
    async def crash() -> None:
        raise ValueError("boom")

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        with caplog.at_level(logging.ERROR):
            neighbour = scope.spawn(asyncio.sleep(0.02, "fine"))
            task = scope.spawn(crash(), name="order-7", meta={"customer": 3})
            await asyncio.wait({task})
            assert await neighbour == "fine"
        del task
        assert [record.getMessage() for record in caplog.records] == [
            "ebbtide: task order-7 of orders crashed: {'customer': 3}"
        ]
        assert runtime.drain_view()["tally"] == {"failed": 1, "finished": 1}


async def test_the_tightest_time_limit_counts_and_is_told_from_a_failure() -> None:
    async def own_timeout() -> None:
        raise TimeoutError("of its own")

    async with a_runtime() as runtime:
        outer = runtime.scope("orders", timeout_s=0.02)
        inner = outer.scope("retry", timeout_s=3600)
        with pytest.raises(TimeoutError):
            await inner.spawn(asyncio.sleep(60), timeout_s=600)
        with pytest.raises(TimeoutError, match="of its own"):
            await inner.spawn(own_timeout())
        assert runtime.drain_view()["tally"] == {"timed_out": 1, "failed": 1}


async def test_cancelling_a_scope_cancels_what_is_inside_it_and_nothing_else() -> None:
    async with a_runtime() as runtime:
        orders, mail = runtime.scope("orders"), runtime.scope("mail")
        inner = orders.scope("retry")
        hit = [orders.spawn(asyncio.sleep(60)), inner.spawn(asyncio.sleep(60))]
        spared = mail.spawn(asyncio.sleep(0.05))
        assert orders.cancel("test") == 2
        await asyncio.wait(hit)
        assert all(task.cancelled() for task in hit)
        await spared


async def test_thousands_of_tasks_are_cancelled_in_portions() -> None:
    async with a_runtime() as runtime:
        runtime.limits = ebbtide.Limits()
        scope = runtime.scope("orders")
        tasks = [scope.spawn(asyncio.sleep(3600)) for _ in range(2000)]
        scope.cancel("test")
        await asyncio.wait(tasks)
        assert runtime.tasks_left == 0


async def test_a_task_cancelled_before_its_first_step_is_counted_and_warns_of_nothing() -> None:
    async with a_runtime() as runtime:
        task = runtime.scope("orders").spawn(asyncio.sleep(60))
        task.cancel()
        await asyncio.wait({task})
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert runtime.tasks_left == 0


async def test_work_in_threads_counts_as_work() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")

        def work() -> int:
            with scope.track("report"):
                return runtime.tasks_left

        assert await asyncio.to_thread(work) == 1
        assert runtime.tasks_left == 0


async def test_tasks_are_shown_with_scope_and_metadata() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        go_on = asyncio.Event()
        task = scope.spawn(go_on.wait(), name="order-1", meta={"customer": 3})
        (shown,) = runtime.tasks()
        assert (shown["name"], shown["scope"], shown["meta"]) == ("order-1", "orders", {"customer": 3})
        go_on.set()
        await task


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks_leave_no_entry_behind() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        for _ in range(10):
            await scope.spawn(asyncio.sleep(0, "done"))
        assert runtime.tasks_left == 0
        assert runtime.drain_view()["tally"] == {"finished": 10}


async def test_a_foreign_task_factory_is_used_and_its_tasks_are_counted() -> None:
    class Special(asyncio.Task[Any]):
        pass

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Special:
        return Special(coroutine, loop=loop, **options)

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        asyncio.get_running_loop().set_task_factory(factory)
        try:
            task = scope.spawn(asyncio.sleep(0, "done"), name="order-1")
            crash = scope.spawn(asyncio.sleep(3600), timeout_s=0.01)
            assert isinstance(task, Special)
            assert task.get_name() == "order-1"
            assert runtime.tasks_left == 2
            assert await task == "done"
            with pytest.raises(ebbtide.TimedOut):
                await crash
        finally:
            asyncio.get_running_loop().set_task_factory(None)
        assert runtime.drain_view()["tally"] == {"finished": 1, "timed_out": 1}


async def test_what_a_task_starts_by_other_means_still_belongs_to_it() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        draining = asyncio.Event()

        async def step() -> str:
            return await scope.spawn(asyncio.sleep(0, "step"))

        async def order() -> list[str]:
            await draining.wait()
            async with asyncio.TaskGroup() as group:
                steps = [group.create_task(step()) for _ in range(2)]
            return [done.result() for done in steps]

        task = scope.spawn(order())
        await asyncio.sleep(0)
        runtime.drain("test", leave=False)
        draining.set()
        assert await task == ["step", "step"]
        assert runtime.drain_view()["late_arrivals"] == 2


async def test_tasks_that_share_a_context_stay_work_when_one_of_them_has_ended() -> None:
    async def order() -> str:
        await draining.wait()
        return await scope.spawn(asyncio.sleep(0, "sent"))

    draining, shared = asyncio.Event(), contextvars.copy_context()
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(order(), context=shared)
        await scope.spawn(asyncio.sleep(0), context=shared)
        runtime.drain("test", leave=False)
        draining.set()
        assert await task == "sent"


async def test_what_outlives_its_task_belongs_to_nobody() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        draining = asyncio.Event()
        orphans: list[asyncio.Task[None]] = []

        async def orphan() -> None:
            await draining.wait()
            scope.spawn(asyncio.sleep(0))

        async def order() -> None:
            orphans.append(asyncio.create_task(orphan()))

        await scope.spawn(order())
        await until(lambda: runtime.tasks_left == 0)
        runtime.drain("test", leave=False)
        draining.set()
        with pytest.raises(ebbtide.Refused):
            await orphans[0]


async def test_a_refused_coroutine_is_closed_and_told_when_to_try_again() -> None:
    async with a_runtime() as runtime:
        runtime.drain("test", leave=False)
        coroutine = asyncio.sleep(0)
        with pytest.raises(ebbtide.Refused) as refused:
            runtime.scope("orders").spawn(coroutine)
        assert refused.value.retry_after_s > 0
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await coroutine


async def test_a_task_with_several_blocks_is_cancelled_once() -> None:
    cancels = 0

    async def handler() -> None:
        nonlocal cancels
        with scope.track("outer"), scope.track("inner"):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancels += 1
                await asyncio.sleep(0.01)
                raise

    async with a_runtime() as runtime:
        scope = runtime.scope("http")
        task = asyncio.create_task(handler())
        await until(lambda: runtime.tasks_left == 2)
        scope.cancel("test")
        scope.cancel("again")
        await asyncio.wait({task})
        assert cancels == 1
        assert runtime.drain_view()["tally"] == {"cancelled": 2}


async def test_a_block_that_fails_is_counted_and_its_owner_handles_it() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("http")
        with pytest.raises(ZeroDivisionError), scope.track("request"):
            raise ZeroDivisionError
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                with scope.track("request"):
                    await asyncio.sleep(3600)
        assert runtime.drain_view()["tally"] == {"failed": 1, "cancelled": 1}


async def test_a_thread_of_a_scope_is_work_in_flight() -> None:
    seen = contextvars.ContextVar("seen", default="")
    seen.set("by the caller")
    release = threading.Event()

    def work(number: int) -> tuple[int, str]:
        release.wait(10)
        return number, seen.get()

    async with a_runtime() as runtime:
        scope = runtime.scope("reports")
        future = scope.thread(work, 7)
        assert [task["kind"] for task in runtime.tasks()] == ["thread"]
        release.set()
        assert await asyncio.wrap_future(future) == (7, "by the caller")
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(scope.thread(lambda: 1 // 0))
        await until(lambda: runtime.tasks_left == 0)
        assert runtime.drain_view()["tally"] == {"finished": 1, "failed": 1}
        runtime.drain("test", leave=False)
        with pytest.raises(ebbtide.Refused):
            scope.thread(work, 8)


async def test_a_scope_is_the_same_by_its_name_and_has_one_limit() -> None:
    async with a_runtime() as runtime:
        orders = runtime.scope("orders", timeout_s=5)
        assert runtime.scope("orders", timeout_s=5) is orders
        assert orders.scope("retry").timeout_s == 5
        with pytest.raises(ValueError, match=r"scope orders: timeout_s is 5 .* None here"):
            runtime.scope("orders")


async def test_an_ended_task_is_freed_at_once() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        with without_collector():
            task = scope.spawn(asyncio.sleep(0))
            seen = weakref.ref(task)
            await task
            await until(lambda: runtime.tasks_left == 0)
            del task
            await asyncio.sleep(0)
            assert seen() is None


async def test_a_timeout_is_told_from_a_cancel_of_somebody_else() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders", timeout_s=30)
        task = scope.spawn(asyncio.sleep(3600))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        with pytest.raises(ebbtide.TimedOut, match=r"order-1 took longer than 0\.01 s"):
            await scope.spawn(asyncio.sleep(3600), name="order-1", timeout_s=0.01)
        assert runtime.drain_view()["tally"] == {"cancelled": 1, "timed_out": 1}


async def test_spawning_outside_a_loop_is_an_error_that_leaves_nothing_behind() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(lambda: scope.spawn(asyncio.sleep(0)))
        assert runtime.tasks_left == 0


@pytest.mark.parametrize("timeout_s", [None, 5.0])
@pytest.mark.parametrize("factory", [None, lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)])
async def test_what_is_no_coroutine_is_told_at_once_and_leaves_nothing_behind(
    timeout_s: float | None, factory: Any
) -> None:
    async def work() -> None:
        pass

    async with a_runtime() as runtime:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        scope = runtime.scope("orders", limits=ebbtide.Limits(max_tasks=1))
        waiting = runtime.scope("mails", limits=ebbtide.Limits(max_tasks=1, admission=ebbtide.Admission.WAIT))
        given: list[Any] = [work, loop.create_future(), asyncio.gather(loop.create_future()), 5]
        for wrong in given:
            with pytest.raises(TypeError, match="a coroutine was expected, got"):
                scope.spawn(wrong, timeout_s=timeout_s)
            with pytest.raises(TypeError, match="a coroutine was expected, got"):
                await waiting.submit(wrong, timeout_s=timeout_s)
            async with scope.group() as group:
                with pytest.raises(TypeError, match="a coroutine was expected, got"):
                    group.spawn(wrong, timeout_s=timeout_s)
        loop.set_task_factory(None)
        assert (runtime.tasks_left, scope.gate.held, waiting.gate.held) == (0, 0, 0)
        await scope.spawn(work())


async def test_what_is_no_coroutine_is_refused_like_one_that_is() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders", limits=ebbtide.Limits(admission=ebbtide.Admission.WAIT))
        runtime.drain("test", leave=False)
        wrong: Any = asyncio.sleep
        with pytest.raises(ebbtide.Refused):
            scope.spawn(wrong)
        with pytest.raises(ebbtide.Refused):
            await scope.submit(wrong)
        async with scope.group() as group:
            with pytest.raises(ebbtide.Refused):
                group.spawn(wrong)


async def test_a_future_is_no_task_to_adopt() -> None:
    async with a_runtime() as runtime:
        future: Any = asyncio.get_running_loop().create_future()
        with pytest.raises(AttributeError):
            runtime.scope("orders").adopt(future)
        assert len(runtime._registry) == 0


async def test_the_log_has_no_second_word_on_a_crash_that_nobody_awaited(caplog: Any) -> None:
    async def crash() -> None:
        raise ValueError("boom")

    async with a_runtime() as runtime:
        with caplog.at_level(logging.ERROR):
            runtime.scope("orders").spawn(crash())
            await until(lambda: runtime.tasks_left == 0)
            gc.collect()
    assert len(caplog.records) == 1


async def test_a_crash_is_logged_in_the_context_of_its_task(caplog: Any) -> None:
    trace = contextvars.ContextVar("trace", default="")
    seen: list[str] = []

    class Witness(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            seen.append(trace.get())
            return True

    async def crash() -> None:
        trace.set("set by the task")
        raise ValueError("boom")

    witness = Witness()
    logging.getLogger("ebbtide").addFilter(witness)
    try:
        async with a_runtime() as runtime:
            runtime.scope("orders").spawn(crash())
            await until(lambda: runtime.tasks_left == 0)
            assert seen == ["set by the task"]
    finally:
        logging.getLogger("ebbtide").removeFilter(witness)
