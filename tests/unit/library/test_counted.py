"""Ends of tasks: counted once and as what they were, in the task's last step or by a callback."""

import asyncio
import contextvars
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebbtide.admin.dump import Question, dump, render
from ebbtide.stacks.origins import code_of
from ebbtide.tasks.counted import CROWD
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.scope import Scope
from tests.unit.library.runtimes import a_runtime, until

Task = asyncio.Task[Any]


async def at_once() -> None:
    pass


async def crash() -> None:
    await asyncio.sleep(0)
    raise ValueError("boom")


async def close_itself() -> None:
    await asyncio.sleep(0)
    raise GeneratorExit


async def swallow() -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(0)


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def cancelled_later(task: Task) -> None:
    await asyncio.sleep(0)
    task.cancel()


def begin(scope: Scope, end: str) -> list[Task]:
    """Start a task that ends in a certain way, and what makes it do so."""
    match end:
        case "finishes":
            return [scope.spawn(asyncio.sleep(0))]
        case "finishes at once":
            return [scope.spawn(at_once())]
        case "finishes within its limit":
            return [scope.spawn(at_once(), timeout_s=60)]
        case "crashes":
            return [scope.spawn(crash())]
        case "raises what closes a coroutine":
            return [scope.spawn(close_itself())]
        case "times out":
            return [scope.spawn(asyncio.sleep(3600), timeout_s=0.001)]
        case "cancels itself":
            return [scope.spawn(cancel_itself())]
        case "swallows a cancel":
            task = scope.spawn(swallow())
        case "is cancelled":
            task = scope.spawn(asyncio.sleep(3600))
        case _:
            task = scope.spawn(asyncio.sleep(3600), timeout_s=60 if end == LIMITED else None)
            task.cancel()
            task.cancel()
            return [task]
    return [task, asyncio.ensure_future(cancelled_later(task))]


LIMITED = "is cancelled before it begins, limited"
OUTCOMES = {
    "finishes": "finished",
    "finishes at once": "finished",
    "finishes within its limit": "finished",
    "crashes": "failed",
    "raises what closes a coroutine": "failed",
    "times out": "timed_out",
    "cancels itself": "cancelled",
    "swallows a cancel": "finished",
    "is cancelled": "cancelled",
    "is cancelled before it begins": "cancelled",
    LIMITED: "cancelled",
}


async def ended(ends: Sequence[str]) -> Registry:
    registry = Registry(lambda: None)
    registry.settle(asyncio.get_running_loop())
    scope = Scope(registry, "orders", None)
    await asyncio.wait([task for end in ends for task in begin(scope, end)])
    await until(lambda: not len(registry))
    return registry


@pytest.mark.parametrize("crowd", [0, 2, CROWD])
@given(ends=st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_an_end_is_counted_once_and_as_what_it_was(crowd: int, ends: list[str]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        with mock.patch("ebbtide.tasks.admission.CROWD", crowd), mock.patch("ebbtide.tasks.starting.CROWD", crowd):
            registry = asyncio.run(ended(ends))
    finally:
        logging.disable(logging.NOTSET)
    assert registry.tally == Counter(OUTCOMES[end] for end in ends)
    assert not registry.odd
    assert not registry.marks


def test_what_is_thrown_away_with_its_loop_is_not_counted() -> None:
    async def main() -> None:
        registry.settle(asyncio.get_running_loop())
        tasks.append(scope.spawn(asyncio.Event().wait()))
        await asyncio.sleep(0)

    registry, tasks = Registry(lambda: None), list[Task]()
    scope = Scope(registry, "orders", None)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    coroutine: Any = tasks[0].get_coro()
    coroutine.close()
    assert registry.tally == {}
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_cancel_that_is_taken_back_before_the_first_step_is_counted_once() -> None:
    async with a_runtime() as runtime:
        task = runtime.scope("orders").spawn(asyncio.sleep(0))
        task.cancel()
        task.uncancel()  # from Python 3.13 on it then runs
        await asyncio.wait({task})
        await until(lambda: not runtime.tasks_left)
        assert sum(runtime.drain_view()["tally"].values()) == 1


async def test_a_supervised_task_that_is_cancelled_before_it_begins_warns_of_nothing() -> None:
    async with a_runtime() as runtime:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            task = runtime.scope("orders").supervise(at_once)
            task.cancel()
            await asyncio.wait({task})
        assert runtime.drain_view()["tally"] == {"cancelled": 1}


async def test_a_crash_is_logged_in_the_context_of_what_crashed(caplog: Any) -> None:
    trace_id = contextvars.ContextVar("trace_id", default="")
    seen: list[str] = []

    def note(_record: logging.LogRecord) -> bool:
        seen.append(trace_id.get())
        return True

    async def order() -> None:
        trace_id.set("of the order")
        await crash()

    logger = logging.getLogger("ebbtide")
    logger.addFilter(note)
    try:
        async with a_runtime() as runtime:
            await asyncio.wait({runtime.scope("orders").spawn(order())})
            await until(lambda: not runtime.tasks_left)
            crashed = [one for one, record in zip(seen, caplog.records, strict=False) if "crashed" in record.message]
    finally:
        logger.removeFilter(note)
    assert crashed == ["of the order"]


async def test_what_has_not_begun_is_shown_as_what_it_will_run() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        for limit_s in (None, 60.0):
            task = scope.spawn(at_once(), timeout_s=limit_s)
            assert code_of(task) is at_once.__code__
            assert "at_once" in render(dump(scope.registry, Question()))
            await task


async def test_the_frame_that_counts_is_not_shown() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(asyncio.sleep(3600))
        await asyncio.sleep(0)
        assert "counted.py" not in render(dump(scope.registry, Question()))
        task.cancel()
